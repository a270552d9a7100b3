// Drives the released @libsql/client through two edges of one primary; prints what it saw as one line of JSON.
// Arguments: the edges' URLs, a token, and which build of the client ("web" or "node").
// The primary is killed and started by whoever reads the lines "kill" and "start" and answers each with one.
import { createInterface } from "node:readline";

const [here, there, token, build] = process.argv.slice(2);
const { createClient } = await import(build === "web" ? "@libsql/client/web" : "@libsql/client");
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const told = async (word) => {
  console.log(word);
  await lines.next();
};

// What a client has written is what it reads, wherever its next request ends: it hands the position on.
let position = null;
const carrying = async (request) => {
  if (position !== null) request.headers.set("nearlite-position", position);
  const answer = await fetch(request);
  position = answer.headers.get("nearlite-position") ?? position;
  return answer;
};
const [one, other] = [here, there].map((url) => createClient({ url, authToken: token, fetch: carrying }));
const seen = {};
const failure = async (work) => {
  try {
    await work();
    return null;
  } catch (error) {
    return error.code;
  }
};

// As the guide to a database CDN of one's own has it.
await one.execute("CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY, name TEXT)");
await one.execute({ sql: "INSERT INTO users(name) VALUES (?)", args: ["Iku"] });
seen.users = (await other.execute("SELECT * FROM users")).rows.map((row) => [row.id, row.name]);

seen.counts = [];
for (let number = 1; number <= 20; number++) {
  const [writes, reads] = number % 2 ? [one, other] : [other, one];
  await writes.execute({ sql: "INSERT INTO users(name) VALUES (?)", args: [`user ${number}`] });
  seen.counts.push((await reads.execute("SELECT count(*) AS n FROM users")).rows[0].n);
}
const batch = await one.batch(
  [{ sql: "DELETE FROM users WHERE id > ?", args: [11] }, "SELECT count(*) AS n FROM users"],
  "write",
);
seen.batch = [batch[1].rows[0].n, (await other.execute("SELECT count(*) AS n FROM users")).rows[0].n];
seen.read = (await other.batch(["SELECT max(id) AS m FROM users", "SELECT 1"], "read"))[0].rows[0].m;
const transaction = await other.transaction("write");
await transaction.execute("UPDATE users SET name = upper(name)");
seen.before = (await one.execute("SELECT name FROM users WHERE id = 1")).rows[0].name;
await transaction.commit();
seen.after = (await one.execute("SELECT name FROM users WHERE id = 1")).rows[0].name;
seen.errors = [
  await failure(() => one.execute("SELEC 1")),
  await failure(() => one.execute("SELECT * FROM nowhere")),
  await failure(() => one.execute("INSERT INTO users(id) VALUES (1)")),
];

const open = await one.transaction("write");
await open.execute("DELETE FROM users");
await told("kill");
seen.away = [(await one.execute("SELECT count(*) AS n FROM users")).rows[0].n];
seen.away.push(await failure(() => other.execute("DELETE FROM users")));
seen.away.push((await failure(() => open.commit())) !== null);
await told("start");
seen.back = [(await one.execute("INSERT INTO users(name) VALUES ('again')")).rowsAffected];
seen.back.push((await other.execute("SELECT count(*) AS n FROM users")).rows[0].n);
console.log(JSON.stringify(seen, (_, value) => (typeof value === "bigint" ? Number(value) : value)));
process.exit(0);
