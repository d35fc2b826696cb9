// The page in Debian's firefox, by WebDriver BiDi: node firefox.mjs PREFIX URL. Prints what it saw as JSON.
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [prefix, url] = process.argv.slice(2);
const puppeteer = createRequire(resolve(prefix, "package.json"))("puppeteer-core");
const browser = await puppeteer.launch({ browser: "firefox", executablePath: "/usr/bin/firefox-esr", headless: true });
try {
  const page = await browser.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.setViewport({ width: 1440, height: 900 });
  await page.goto(url);
  const text = (selector) => page.$eval(selector, (element) => element.textContent);
  const until = (done, ...values) => page.waitForFunction(done, { timeout: 60_000 }, ...values);
  const generate = async (prompt) => {
    await page.$eval("#prompt", (element, value) => (element.value = value), prompt);
    await page.click("#go");
    await until((value) => document.querySelector("#view .tile img")?.alt === value, prompt);
    await until(() => document.querySelector("#cancel").hidden);
  };

  await until(() => document.querySelector("#service").textContent.includes("micro"));
  await generate("a green square on a white background");
  await page.$eval("#num_images", (element) => (element.value = 2));
  await generate("a red circle on a blue background");
  const status = await text("#status");
  const tiles = (await page.$$("#view .tile")).length;
  await page.reload();
  await until(() => document.querySelectorAll("#strip img").length === 2);
  const kept = (await page.$$("#strip img")).length;
  await page.click("#compare");
  for (const n of [1, 2]) await page.click(`#strip li:nth-child(${n}) button`);
  const compared = (await page.$$(".slider img")).length;
  console.log(JSON.stringify({ browser: await browser.version(), errors, status, tiles, kept, compared }));
} finally {
  await browser.close();
}
