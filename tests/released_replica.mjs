// Drives the released npm @libsql/client as an embedded replica, as released_libsql_replica.py does PyPI's.
import { createInterface } from "node:readline";
import { createClient } from "@libsql/client";

const [url, authToken, path, options] = process.argv.slice(2);
let client = null;

function plain(value) {
  return typeof value === "bigint" ? Number(value) : value;
}

async function run(command, sql) {
  if (command === "open") {
    client = createClient({ url: `file:${path}`, syncUrl: url, authToken, ...JSON.parse(options ?? "{}") });
  } else if (command === "sync") {
    await client.sync();
  } else if (command === "read") {
    const found = await client.execute(sql);
    return found.rows.map((row) => found.columns.map((_, i) => plain(row[i])));
  } else if (command === "write") {
    await client.execute(sql);
  } else if (command === "close") {
    client.close();
  }
  return null;
}

for await (const line of createInterface({ input: process.stdin })) {
  try {
    console.log(JSON.stringify({ answer: await run(...JSON.parse(line)) }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error.message ?? error) }));
  }
}
