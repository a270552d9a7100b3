// Drives the released npm @libsql/client with signed tokens; prints what it saw as one line of JSON.
// Arguments: url, and tokens of somebody who writes, who reads, an expired one, one for another database.
import { createClient } from "@libsql/client";

const [url, writes, reads, expired, elsewhere] = process.argv.slice(2);
const seen = {};

async function failure(work) {
  try {
    await work();
  } catch (error) {
    return [error.code, error.message];
  }
  return null;
}

const writer = createClient({ url, authToken: writes });
await writer.executeMultiple("CREATE TABLE t(a); INSERT INTO t VALUES (1), (2)");
const reader = createClient({ url, authToken: reads });
seen.rows = (await reader.execute("SELECT count(*) AS n FROM t")).rows[0].n;
seen.execute = await failure(() => reader.execute("INSERT INTO t VALUES (3)"));
seen.batch = await failure(() => reader.batch(["SELECT 1", "INSERT INTO t VALUES (3)"], "deferred"));
seen.write = await failure(() => reader.batch(["SELECT 1"], "write"));
seen.multiple = await failure(() => reader.executeMultiple("SELECT 1; DROP TABLE t"));
const transaction = await reader.transaction("read");
seen.inside = (await transaction.execute("SELECT count(*) AS n FROM t")).rows[0].n;
await transaction.commit();
seen.after = (await reader.execute("SELECT count(*) AS n FROM t")).rows[0].n;
for (const [name, authToken] of Object.entries({ expired, elsewhere, none: undefined })) {
  const client = createClient({ url, authToken });
  seen[name] = await failure(() => client.execute("SELECT 1"));
  client.close();
}
reader.close();
writer.close();
console.log(JSON.stringify(seen, (_, value) => (typeof value === "bigint" ? Number(value) : value)));
