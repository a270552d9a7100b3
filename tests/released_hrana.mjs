// Drives the released @libsql/hrana-client in version 3; prints what it saw as one line of JSON.
import * as hrana from "@libsql/hrana-client";

const [url, token] = process.argv.slice(2);
const client = url.startsWith("ws") ? hrana.openWs(url, token, 3) : hrana.openHttp(url, token, undefined, undefined, 3);
client.intMode = "bigint";
const seen = {};
const failure = async (work) => {
  try {
    await work();
    return null;
  } catch (error) {
    return [error.code ?? error.constructor.name, error.message];
  }
};

seen.version = await client.getVersion();
const stream = client.openStream();
await stream.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b, c REAL, d BLOB)");
const inserted = await stream.run(["INSERT INTO t(b, c, d) VALUES(?, ?, ?)", ["héllo\u{1f600}", 1.5, new Uint8Array([0, 255])]]);
seen.inserted = [inserted.affectedRowCount, inserted.lastInsertRowid];
const row = await stream.queryRow(["SELECT a, b, c, d, NULL, ?, ?, 1e999 FROM t", [9223372036854775807n, -9223372036854775808n]]);
seen.row = Array.from(row.row, (value) => (value instanceof ArrayBuffer ? Array.from(new Uint8Array(value)) : value === Infinity ? "infinite" : value));
seen.columns = [row.columnNames.slice(0, 3), row.columnDecltypes.slice(0, 4)];
seen.named = await stream.queryValue(new hrana.Stmt("SELECT :x || $y").bindName("x", "a").bindName("y", "b")).then((found) => found.value);
seen.empty = (await stream.query("SELECT 1 WHERE 0")).rows.length;
const described = await stream.describe("SELECT a AS x FROM t WHERE a = :p AND b = ?");
seen.described = [described.paramNames, described.columns, described.isExplain, described.isReadonly];
await stream.sequence("INSERT INTO t(b) VALUES('second'); INSERT INTO t(b) VALUES('third');");
seen.autocommit = [await stream.getAutocommit()];
await stream.run("BEGIN");
seen.autocommit.push(await stream.getAutocommit());
await stream.run("ROLLBACK");

const sql = client.storeSql ? client.storeSql("SELECT count(*) FROM t") : stream.storeSql("SELECT count(*) FROM t");
seen.stored = (await stream.queryValue(sql)).value;
sql.close();

for (const useCursor of [false, true]) {
  const batch = stream.batch(useCursor);
  const one = batch.step();
  const first = one.query("SELECT a FROM t ORDER BY a");
  const two = batch.step().condition(hrana.BatchCond.ok(one));
  const second = two.run("SELECT * FROM nowhere").catch((error) => error.code);
  const three = batch.step().condition(hrana.BatchCond.and(batch, [hrana.BatchCond.error(two), hrana.BatchCond.not(hrana.BatchCond.ok(two)), hrana.BatchCond.isAutocommit(batch)]));
  const third = three.queryValue("SELECT 3");
  const four = batch.step().condition(hrana.BatchCond.or(batch, [hrana.BatchCond.ok(two)]));
  const fourth = four.queryValue("SELECT 4");
  await batch.execute();
  seen[useCursor ? "cursor" : "batch"] = [(await first).rows.map((found) => found[0]), await second, (await third).value, (await fourth) ?? null];
}

const large = stream.batch(true);
const numbers = large.step().query("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 30000) SELECT i, 'number ' || i FROM c");
await large.execute();
const rows = (await numbers).rows;
seen.large = [rows.length, rows[29999][0], rows[29999][1]];

seen.syntax = await failure(() => stream.run("SELEC 1"));
seen.unique = await failure(() => stream.run("INSERT INTO t(a) VALUES(1)"));
seen.arguments = await failure(() => stream.run(["SELECT ?", [1, 2]]));

const streams = Array.from({ length: 20 }, () => client.openStream());
const written = streams.map((other, i) => other.run(["INSERT INTO t(b) VALUES(?)", [i]]));
await Promise.all(written);
for (const other of streams) other.close();
seen.after = (await stream.queryValue("SELECT count(*) FROM t")).value;
stream.close();
client.close();

const stranger = url.startsWith("ws") ? hrana.openWs(url, "wrong", 3) : hrana.openHttp(url, "wrong", undefined, undefined, 3);
seen.unauthorized = await failure(() => stranger.openStream().queryValue("SELECT 1"));
stranger.close();
console.log(JSON.stringify(seen, (_, value) => (typeof value === "bigint" ? String(value) : value)));
