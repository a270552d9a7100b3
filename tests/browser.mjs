// A browser that does what it is told, one JSON object a line: {"do": name, ...} -> {"answer": ...} or {"error": ...}.
// Debian's Chromium, driven by playwright-core; see browser.py.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [executablePath] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  // Root has no sandbox of its own, and /dev/shm may be small. A stranger's name leads to this machine.
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
    "--host-resolver-rules=MAP elsewhere.example 127.0.0.1"],
});
const pages = new Map();
const told = [];

const commands = {
  async open({ page: name, url, scheme, width, height }) {
    const context = await browser.newContext({
      viewport: { width: width ?? 1280, height: height ?? 900 }, colorScheme: scheme ?? "light" });
    const page = await context.newPage();
    page.setDefaultTimeout(60_000);
    const tell = (what) => pages.get(name) === page && told.push(what);
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) tell(message.text());
    });
    page.on("pageerror", (error) => tell(String(error)));
    page.on("request", (request) => {
      if (!request.url().startsWith(url) && !request.url().startsWith("data:")) tell("asked for " + request.url());
    });
    pages.set(name, page);
    const answer = await page.goto(url);
    return answer.status();
  },
  fill: ({ page, where, text }) => pages.get(page).fill(where, text),
  press: ({ page, where, key }) => pages.get(page).press(where, key),
  click: ({ page, where }) => pages.get(page).click(where),
  text: ({ page, where }) => pages.get(page).innerText(where),
  attribute: ({ page, where, name }) => pages.get(page).getAttribute(where, name),
  cells: ({ page, where }) => pages.get(page).locator(where).allInnerTexts(),
  // Until an element's text matches.
  until: ({ page, where, matches }) =>
    pages.get(page).locator(where).filter({ hasText: new RegExp(matches), visible: true }).first().waitFor(),
  evaluate: ({ page, code }) => pages.get(page).evaluate(code),
  // Until an expression is true. As a function: the page's policy lets nobody evaluate text later on.
  when: async ({ page, code }) =>
    (await pages.get(page).waitForFunction(new Function(`return (${code})`))).jsonValue(),
  screenshot: async ({ page, path }) => void (await pages.get(page).screenshot({ path, fullPage: true })),
  // All pages.
  close: async () => {
    const open = [...pages.values()];
    pages.clear();
    told.length = 0;
    for (const page of open) await page.context().close();
  },
  // What was told since: errors of the page, refusals of its policy, requests elsewhere.
  complaints: () => told.splice(0),
};

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  let answer;
  try {
    answer = { answer: (await commands[asked.do](asked)) ?? null };
  } catch (error) {
    answer = { error: String(error.stack ?? error) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
await browser.close();
