// Opens a report in headless Chromium, uses every control of it, and says what is wrong.
//
//   node report.mjs REPORT.html [SCREENSHOTS]    exit status 0: nothing is wrong; 1: something; 2: usage
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import puppeteer from 'puppeteer-core';

// A machine that does other things besides says nothing about speed.
const FILTER_MS_MAX = Number(process.env.FILTER_MS_MAX ?? 100);
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const [file, pictures] = process.argv.slice(2);
if (!file) { console.error('usage: report.mjs REPORT.html [SCREENSHOTS]'); process.exit(2); }
if (pictures) mkdirSync(pictures, { recursive: true });
const url = pathToFileURL(resolve(file)).href;
const wrong = [];
const must = (holds, what) => { if (!holds) { wrong.push(what); console.error(`wrong: ${what}`); } };

const launch = () => puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  headless: true,
  pipe: true,
  timeout: 60000,
  // Root can't use the sandbox of the browser; the background services would look for a network.
  args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--disable-quic', '--no-first-run', '--hide-scrollbars',
    '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
// On a machine that is busy with other tests a start may take too long. That says nothing about the report.
const browser = await launch().catch(launch).catch(launch);

const open = async () => {
  const page = await browser.newPage();
  page.on('console', (message) => { if (['error', 'warn', 'assert'].includes(message.type())) must(false, `console: ${message.text()}`); });
  page.on('pageerror', (error) => must(false, `error: ${error.message}`));
  page.on('dialog', async (dialog) => { must(false, `a dialog: ${dialog.message()}`); await dialog.dismiss(); });
  page.on('request', (request) => {
    if (request.url().split('#')[0] !== url && !/^(data|blob):/.test(request.url())) must(false, `request: ${request.url()}`);
  });
  await page.goto(url, { waitUntil: 'load' });
  await page.waitForSelector('html[data-ready="1"]', { timeout: 20000 });
  return page;
};

// Every view: nothing scrolls sideways, and axe has nothing to object to, with all examples open.
const views = async (page) => {
  const sizes = { desktop: { width: 1280, height: 900 }, phone: { width: 390, height: 844, isMobile: true, hasTouch: true } };
  for (const [size, viewport] of Object.entries(sizes)) {
    for (const scheme of ['light', 'dark']) {
      await page.setViewport(viewport);
      await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
      await page.goto(url, { waitUntil: 'load' });
      await page.waitForSelector('html[data-ready="1"]');
      await page.evaluate(() => document.querySelectorAll('details').forEach((one, n) => { one.open = n < 3; }));
      await page.evaluate(() => new Promise((done) => setTimeout(done, 300)));
      const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      must(over <= 0, `${size} ${scheme}: the page is ${over} px too wide`);
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ['violations'] }));
      for (const one of violations) must(false, `${size} ${scheme}: ${one.id}: ${one.help}: ${one.nodes[0].target.join(' ')}: ${one.nodes[0].failureSummary}`);
      if (pictures) await page.screenshot({ path: `${pictures}/${size}-${scheme}.png`, fullPage: size === 'desktop' });
    }
  }
};

const shown = (page) => page.evaluate(() => [...document.querySelectorAll('article')].filter((one) => !one.hidden && !one.closest('[hidden]')).length);

// Filters: each one shows less, and all of it comes back. How long each takes until the next frame is drawn.
const filters = async (page) => {
  const timed = (action) => page.evaluate(async (action) => {
    const started = performance.now();
    const element = document.querySelector(action.on);
    if (action.value !== undefined) { element.value = action.value; element.dispatchEvent(new Event(action.event)); } else element.click();
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    return performance.now() - started;
  }, action);
  const all = await shown(page);
  must(all > 0, 'no results are shown');
  const names = await page.$$eval('#scenario option', (options) => options.map((option) => option.value));
  let slowest = 0;
  const does = async (action) => { slowest = Math.max(slowest, await timed(action)); };
  for (const name of names.slice(1)) {
    await does({ on: '#scenario', value: name, event: 'change' });
    const wrongSection = await page.$$eval('#results section', (sections, name) => sections.filter((one) => !one.hidden && one.getAttribute('aria-label') !== name).length, name);
    must(wrongSection === 0, `scenario ${name}: others are shown`);
  }
  await does({ on: '#scenario', value: '', event: 'change' });
  await does({ on: '#strategy', value: 'no such strategy', event: 'input' });
  must(await shown(page) === 0, 'a name that nothing has shows something');
  await does({ on: '#strategy', value: '', event: 'input' });
  await does({ on: '#unexpected' });
  const unexpected = await page.$$eval('article > h3 > .no, article > h3 > .unclear', (all) => all.length);
  must(await shown(page) === unexpected, 'the unexpected results are not those that are shown');
  await does({ on: '#unexpected' });
  const boxes = (await page.$$('#outcomes input')).length;
  for (let n = 1; n <= boxes; n++) await does({ on: `#outcomes label:nth-of-type(${n}) input` });
  const lanes = () => page.$$eval('.lane', (all) => all.filter((lane) => !lane.hidden && !lane.closest('[hidden]')).length);
  must(await lanes() === 0, 'lanes of outcomes that are switched off are shown');
  for (let n = 1; n <= boxes; n++) await does({ on: `#outcomes label:nth-of-type(${n}) input` });
  must(await shown(page) === all, 'not all results came back');
  must(slowest <= FILTER_MS_MAX, `a filter took ${slowest.toFixed(0)} ms`);
  console.log(`slowest filter ${slowest.toFixed(0)} ms, ${names.length - 1} scenarios, ${all} results`);
};

// The map by keyboard and by pointer, its zoom, and the example that it leads to.
const map = async (page) => {
  const maps = await page.$$('.map');
  for (const one of maps.slice(0, 3)) {
    await one.scrollIntoView();
    await one.focus();
    await page.waitForFunction((map) => map.querySelector('canvas').width > 300 || map.querySelector('canvas').clientWidth > 0, {}, one);
    const value = () => one.evaluate((map) => map.getAttribute('aria-valuetext'));
    await page.keyboard.press('Home');
    await page.waitForFunction((map) => map.getAttribute('aria-valuetext') !== 'no place chosen', {}, one);
    const first = await value();
    await page.keyboard.press('End');
    const last = await value();
    must(first.includes(':') && last.includes(':'), `no place is told: ${first}, ${last}`);
    for (const key of ['ArrowLeft', 'ArrowRight', 'PageUp', 'PageDown', '+', '-']) await page.keyboard.press(key);
    const cursor = await one.evaluate((map) => map.querySelector('.cursor').hidden);
    must(!cursor, 'the cursor is not shown');
    const painted = await one.evaluate((map) => [...map.querySelectorAll('canvas')].some((canvas) => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0)));
    must(painted, 'nothing is painted');
    const examples = await one.evaluate((map) => map.closest('article').querySelectorAll('details').length);
    await page.keyboard.press('Enter');
    if (examples) {
      const opened = (map) => map.closest('article').querySelectorAll('details[open] dl').length > 0;
      await page.waitForFunction(opened, { timeout: 3000 }, one).catch(() => must(false, 'Enter opens no example'));
    }
    await one.focus();
    for (const button of await one.evaluateHandle((map) => map.parentElement).then((box) => box.$$('button'))) await button.click();
    const lane = await one.$('.lane canvas');
    await lane.click();
    must((await value()).includes(':'), 'a click tells no place');
  }
};

const examples = async (page) => {
  await page.$$eval('details', (all) => all.slice(0, 20).forEach((one) => { one.open = true; }));
  await page.waitForFunction(() => [...document.querySelectorAll('details[open]')].every((one) => one.querySelector('dl')));
  const said = await page.$$eval('details[open] dl', (all) => all.map((one) => one.textContent));
  for (const text of said) must(text.includes('replay '), `no replay line: ${text.slice(0, 80)}`);
  for (const button of (await page.$$('details[open] button')).slice(0, 2)) await button.click();
};

const links = async (page) => {
  const targets = await page.$$eval('#table a', (all) => all.map((one) => one.getAttribute('href').slice(1)));
  const missing = await page.evaluate((ids) => ids.filter((id) => !document.getElementById(id)), targets);
  must(missing.length === 0, `links lead nowhere: ${missing}`);
};

try {
  const page = await open();
  await page.setViewport({ width: 1280, height: 900 });
  await links(page);
  await map(page);
  await examples(page);
  await filters(page);
  const pdf = await page.pdf({ format: 'A4' });
  must(pdf.length > 5000, 'it prints nothing');
  if (pictures) writeFileSync(`${pictures}/print.pdf`, pdf);
  await views(page);
} catch (error) {
  must(false, error.stack);
} finally {
  await browser.close();
}
process.exit(wrong.length ? 1 : 0);
