// Drives the released @libsql/client over HTTP; prints what it saw as one line of JSON.
import { createClient } from "@libsql/client";

const client = createClient({ url: process.argv[2], authToken: process.argv[3] });
const seen = {};
const failure = async (work) => {
  try {
    await work();
    return null;
  } catch (error) {
    return { code: error.code, message: error.message };
  }
};

await client.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b, c REAL, d BLOB)");
const inserted = await client.execute({
  sql: "INSERT INTO t(b, c, d) VALUES (?, ?, ?)",
  args: ["héllo\u0000\u{1f600}", 1.5, new Uint8Array([1, 2, 255])],
});
seen.inserted = [inserted.rowsAffected, String(inserted.lastInsertRowid)];
const row = (await client.execute("SELECT a, b, c, d FROM t")).rows[0];
seen.row = [row.a, row.b, row.c, Array.from(new Uint8Array(row.d))];
seen.columns = (await client.execute("SELECT a, b AS other FROM t")).columns;
seen.named = (await client.execute({ sql: "SELECT :x + $y AS z", args: { x: 2n, y: 3n } })).rows[0].z;

const batch = await client.batch(
  ["INSERT INTO t(b) VALUES ('two')", { sql: "INSERT INTO t(b) VALUES (?)", args: ["three"] }, "SELECT count(*) AS n FROM t"],
  "write",
);
seen.batch = batch[2].rows[0].n;
seen.read = (await client.batch(["SELECT count(*) AS n FROM t", "SELECT 5 AS five"], "read"))[1].rows[0].five;
seen.failed_batch = await failure(() =>
  client.batch(["INSERT INTO t(b) VALUES ('lost')", "INSERT INTO t(a) VALUES (1)"], "write"),
);
seen.after_failed_batch = (await client.execute("SELECT count(*) AS n FROM t")).rows[0].n;

const transaction = await client.transaction("write");
await transaction.execute("INSERT INTO t(b) VALUES ('four')");
seen.inside = (await transaction.execute("SELECT count(*) AS n FROM t")).rows[0].n;
seen.outside = (await client.execute("SELECT count(*) AS n FROM t")).rows[0].n;
await transaction.commit();
const undone = await client.transaction("deferred");
await undone.execute("DELETE FROM t");
await undone.rollback();
seen.after = (await client.execute("SELECT count(*) AS n FROM t")).rows[0].n;
const reader = await client.transaction("read");
seen.readonly = await failure(() => reader.execute("DELETE FROM t"));
reader.close();

await client.executeMultiple("CREATE TABLE m(x); INSERT INTO m VALUES (1); INSERT INTO m VALUES (2);");
seen.multiple = (await client.execute("SELECT sum(x) AS s FROM m")).rows[0].s;
await client.migrate(["CREATE TABLE p(id INTEGER PRIMARY KEY)", "CREATE TABLE q(p REFERENCES p(id))"]);
seen.migrated = (await client.execute("SELECT count(*) AS n FROM sqlite_master")).rows[0].n;

seen.syntax = await failure(() => client.execute("SELEC 1"));
seen.missing = await failure(() => client.execute("SELECT * FROM nowhere"));
seen.unique = await failure(() => client.execute("INSERT INTO t(a) VALUES (1)"));
seen.arguments = await failure(() => client.execute({ sql: "SELECT ?, ?", args: [1] }));
const stranger = createClient({ url: process.argv[2], authToken: "wrong" });
seen.unauthorized = await failure(() => stranger.execute("SELECT 1"));

// Twenty at a time, as the client does by default.
await Promise.all(Array.from({ length: 60 }, (_, i) => client.execute({ sql: "INSERT INTO m VALUES (?)", args: [i] })));
seen.concurrent = (await client.execute("SELECT count(*) AS n FROM m")).rows[0].n;
client.close();
console.log(JSON.stringify(seen, (_, value) => (typeof value === "bigint" ? Number(value) : value)));
