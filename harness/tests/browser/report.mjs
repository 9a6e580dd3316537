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

// What a page does that it must not.
const watch = (page) => {
  // That the canvases are read back so often is this script's doing.
  page.on('console', (message) => { if (!message.text().includes('willReadFrequently') && ['error', 'warn', 'assert'].includes(message.type())) must(false, `console: ${message.text()}`); });
  page.on('pageerror', (error) => must(false, `error: ${error.message}`));
  page.on('dialog', async (dialog) => { must(false, `a dialog: ${dialog.message()}`); await dialog.dismiss(); });
  page.on('request', (request) => {
    if (request.url().split('#')[0] !== url && !/^(data|blob):/.test(request.url())) must(false, `request: ${request.url()}`);
  });
};

const open = async (hash = '') => {
  const page = await browser.newPage();
  watch(page);
  await page.setViewport({ width: 1280, height: 900 });
  await page.goto(url + hash, { waitUntil: 'load' });
  await page.waitForSelector('html[data-ready="1"]', { timeout: 20000 });
  return page;
};

const uncovered = async (page, where) => {
  const covered = await page.evaluate(() => {
    const bar = document.getElementById('filters'), wrong = [];
    if (getComputedStyle(bar).position !== 'sticky') return wrong;
    for (const one of [...document.querySelectorAll('#results .map, #results summary, #results button:not([disabled])')].slice(0, 40).reverse()) {
      if (!one.checkVisibility()) continue;
      one.focus();
      if (one.getBoundingClientRect().top < bar.getBoundingClientRect().bottom - 1) wrong.push(one.textContent.slice(0, 40));
    }
    return wrong;
  });
  must(covered.length === 0, `${where}: the filters cover what has the focus: ${covered.slice(0, 3)}`);
};

// Every view: nothing scrolls sideways, and axe has nothing to object to, with all examples open.
const views = async (page) => {
  const sizes = {
    desktop: { width: 1280, height: 900 }, low: { width: 1000, height: 400 }, phone: { width: 360, height: 740, isMobile: true, hasTouch: true },
  };
  for (const [size, viewport] of Object.entries(sizes)) {
    for (const scheme of ['light', 'dark']) {
      await page.setViewport(viewport);
      await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
      await page.goto(url, { waitUntil: 'load' });
      await page.waitForSelector('html[data-ready="1"]');
      // What is out of sight is looked at too.
      await page.addStyleTag({ content: 'article { content-visibility: visible !important; }' });
      await page.evaluate(() => document.querySelectorAll('details').forEach((one, n) => { one.open = n < 3; }));
      await page.evaluate(() => new Promise((done) => setTimeout(done, 300)));
      const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      must(over <= 0, `${size} ${scheme}: the page is ${over} px too wide`);
      // Labels of lanes are there whole, and the bar covers nothing that has the focus.
      const cut = await page.$$eval('.lane span', (all) => all.filter((one) => one.scrollWidth > one.clientWidth + 1 || one.getBoundingClientRect().right > document.documentElement.clientWidth).map((one) => one.textContent));
      must(cut.length === 0, `${size} ${scheme}: cut off: ${cut.slice(0, 3)}`);
      await uncovered(page, `${size} ${scheme}`);
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ['violations'] }));
      for (const one of violations) must(false, `${size} ${scheme}: ${one.id}: ${one.help}: ${one.nodes[0].target.join(' ')}: ${one.nodes[0].failureSummary}`);
      if (pictures) await page.screenshot({ path: `${pictures}/${size}-${scheme}.png`, fullPage: true });
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
  let slowest = 0, which = '';
  const does = async (action) => { const ms = await timed(action); if (ms > slowest) [slowest, which] = [ms, `${action.on} ${action.value ?? ''}`]; };
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
  must(slowest <= FILTER_MS_MAX, `a filter took ${slowest.toFixed(0)} ms: ${which}`);
  console.log(`slowest filter ${slowest.toFixed(0)} ms, ${names.length - 1} scenarios, ${all} results`);
};

const unpacked = (page) => page.waitForSelector('html[data-unpacked="1"]', { timeout: 20000 });
const frames = (page) => page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50)))));

// A click where the bar of the filters is not.
const hit = async (element, options) => {
  await element.evaluate((one) => one.scrollIntoView({ block: 'center' }));
  await element.click(options);
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
    must(await one.evaluate((map) => !map.querySelector('.cursor').hidden), 'the cursor is not shown');
    const blank = await one.$$eval('.lane', (lanes) => lanes.filter((lane) => !/ 0$/.test(lane.textContent)).filter((lane) => {
      const canvas = lane.querySelector('canvas');
      return !canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0);
    }).length);
    must(blank === 0, `${blank} lanes are blank`);
    const { examples, said, counted, labels } = await one.evaluate((map) => {
      const article = map.closest('article');
      return {
        examples: article.querySelectorAll('details[data-x]').length,
        said: article.querySelector('.place').textContent,
        counted: [...map.querySelectorAll('.lane span')].every((span) => article.querySelector('.outcomes').textContent.includes(span.textContent) || / 0$/.test(span.textContent)),
        labels: map.querySelectorAll('.track span').length,
      };
    });
    must(counted, 'the outcomes are nowhere but in the map');
    must(labels > 0, 'there is nothing below the map');
    must(said.includes('Enter') === (examples > 0), `with ${examples} examples it says: ${said}`);
    await page.keyboard.press('Enter');
    if (examples) {
      const opened = (map) => map.closest('article').querySelectorAll('details[open]').length > 0;
      await page.waitForFunction(opened, { timeout: 3000 }, one).catch(() => must(false, 'Enter opens no example'));
    }
    await one.focus();
    for (const button of await one.evaluateHandle((map) => map.parentElement).then((box) => box.$$('button:not([disabled])'))) await hit(button);
    await hit(await one.$('.lane canvas'));
    must((await value()).includes(':'), 'a click tells no place');
  }
};

// With an outcome switched off the map shows the others, and neither keys nor clicks lead to what is not shown.
const outcomes = async (page) => {
  const one = await page.$('.map');
  if (!one) return;
  const lanes = await one.$$eval('.lane', (all) => all.map((lane) => ({ kind: lane.dataset.kind, count: Number(lane.querySelector('span').textContent.replace(/^.* /, '').replaceAll(',', '')) })));
  const there = lanes.filter(({ count }) => count > 0);
  if (there.length < 2) return;
  for (const { kind } of there.slice(0, 2)) {
    const toggle = () => page.click(`#outcomes input[value="${kind}"]`);
    await toggle();
    await one.scrollIntoView();
    await frames(page);
    const value = () => one.evaluate((map) => map.getAttribute('aria-valuetext'));
    await one.focus();
    for (const key of ['Home', 'ArrowRight', 'ArrowRight', 'PageDown', 'End', 'ArrowLeft', 'PageUp', '+', '-', '-', '-']) {
      await page.keyboard.press(key);
      must(!(await value()).includes(`${kind} `), `${kind} is switched off, and ${key} leads to ${await value()}`);
    }
    await page.keyboard.press('End');
    const wide = await one.$$eval('.lane:not([hidden]) canvas', (all) => all.map((canvas) => canvas.width));
    must(wide.every((width) => width > 100), `with ${kind} switched off maps are ${wide} wide`);
    const left = await one.evaluate((map) => map.querySelector('.cursor').offsetLeft - map.querySelector('.track').offsetLeft);
    must(left > 0, `with ${kind} switched off the cursor is at ${left}`);
    await hit(await one.$('.lane:not([hidden]) canvas'), { offset: { x: 30, y: 4 } });
    must(!(await value()).includes(`${kind} `), `${kind} is switched off, and a click leads to ${await value()}`);
    await toggle();
  }
  // What is hidden while the window gets another size is right when it comes back.
  await page.type('#strategy', 'no such strategy');
  await page.setViewport({ width: 1000, height: 900 });
  await page.evaluate(() => { const box = document.getElementById('strategy'); box.value = ''; box.dispatchEvent(new Event('input')); });
  await one.scrollIntoView();
  await frames(page);
  const fits = await one.$$eval('canvas', (all) => all.every((canvas) => Math.abs(canvas.width - Math.round(canvas.clientWidth * devicePixelRatio)) < 2));
  must(fits, 'a map that was hidden while the window got another size is not redrawn');
  await page.setViewport({ width: 1280, height: 900 });
};

const examples = async (page) => {
  await page.$$eval('details', (all) => all.slice(0, 20).forEach((one) => { one.open = true; }));
  await page.waitForFunction(() => [...document.querySelectorAll('details[open]')].every((one) => one.querySelector('button')));
  const said = await page.$$eval('details[open] dl', (all) => all.map((one) => one.textContent));
  for (const text of said) must(text.includes('replay '), `no replay line: ${text.slice(0, 80)}`);
  // A fault at an op of the run shows it.
  const unmarked = await page.$$eval('details[open]', (all) => all.filter((one) => /\bop \d|number \d/.test(one.querySelector('summary').textContent) && one.querySelector('ol.calls[start]') && !one.querySelector('.here')).length);
  must(unmarked === 0, `${unmarked} timelines have no mark`);
  const names = await page.$$eval('details[open] button', (all) => all.map((one) => one.getAttribute('aria-label')));
  must(names.every((name) => /^copy the command of ./.test(name)), `buttons are called ${names.slice(0, 2)}`);
  for (const button of (await page.$$('details[open] button')).slice(0, 2)) await hit(button);
  // Where there is no clipboard, the text is selected.
  const button = (await page.$$('details[open] button'))[2];
  if (!button) return;
  await page.evaluate(() => Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true }));
  await hit(button);
  await page.waitForFunction(() => /replay /.test(String(getSelection())), { timeout: 3000 }).catch(() => must(false, 'without a clipboard nothing is selected'));
  must((await page.$eval('#said', (one) => one.textContent)).includes('selected'), 'it is not said that the command is selected');
};

// A link of the table leads to its row, whatever the filters hide.
const links = async (page) => {
  const targets = await page.$$eval('#table a', (all) => all.map((one) => decodeURIComponent(one.getAttribute('href').slice(1))));
  const missing = await page.evaluate((ids) => ids.filter((id) => !document.getElementById(id)), targets);
  must(missing.length === 0, `links lead nowhere: ${missing}`);
  if (!targets.length) return;
  const isSeen = (id) => { const one = document.getElementById(id), box = one.getBoundingClientRect(); return one.checkVisibility() && box.top < innerHeight && box.bottom > 0; };
  for (let again = 0; again < 2; again++) {
    await page.type('#strategy', 'no such strategy');
    await page.click('#table a');
    await page.waitForFunction(isSeen, { timeout: 3000 }, targets[0]).catch(() => must(false, 'a link to a row that a filter hides leads nowhere'));
  }
  const last = targets[targets.length - 1];
  const other = await open(await page.$$eval('#table a', (all) => all[all.length - 1].getAttribute('href')));
  await other.waitForFunction(isSeen, { timeout: 3000 }, last).catch(() => must(false, 'an address with a row leads elsewhere'));
  await other.close();
  await page.bringToFront();
};

// Nothing in it is told apart by nothing.
const names = async (page) => {
  for (const what of ['#table thead th', '#scenario option', 'article h3']) {
    const texts = await page.$$eval(what, (all) => all.map((one) => one.textContent));
    must(new Set(texts).size === texts.length, `${what}: two have the same name`);
  }
  const unseen = await page.evaluate(() => document.body.innerText.match(/[\u0000-\u0008\u000b-\u001f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g));
  must(!unseen, `there are characters that turn words around: ${unseen}`);
  const without = await page.$$eval('#filters input, #filters select', (all) => all.filter((one) => one.autocomplete !== 'off').length);
  must(without === 0, `${without} filters are kept by the browser`);
  must((await page.title()).length > 'crashtest: '.length, 'the title says nothing');
};

// What passed is told from its background.
const contrast = async (page) => {
  const one = await page.$('.map');
  if (!one) return;
  await one.scrollIntoView();
  for (const value of ['light', 'dark']) {
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value }]);
    await frames(page);
    const ratios = await one.$$eval('.lane canvas', (all) => all.map((canvas) => {
      const bytes = canvas.getContext('2d').getImageData(0, 0, canvas.width || 1, 1).data, n = bytes.findIndex((byte, n) => n % 4 === 3 && byte === 255);
      const light = (rgb) => { const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4)); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      if (n < 0) return 21;
      const own = light([...bytes.slice(n - 3, n)]), behind = light(getComputedStyle(canvas).backgroundColor.match(/[\d.]+/g).map(Number));
      return (Math.max(own, behind) + 0.05) / (Math.min(own, behind) + 0.05);
    }));
    must(ratios.every((ratio) => ratio >= 3), `${value}: a lane has a contrast of ${Math.min(...ratios).toFixed(1)}`);
  }
  await page.emulateMediaFeatures([]);
};

// On paper: every map is there, in the colours of paper, also when the screen is dark and nothing was looked at.
const paper = async () => {
  const page = await open();
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'dark' }]);
  await unpacked(page);
  await page.evaluate(`addEventListener('beforeprint', () => (window.painted = [...document.querySelectorAll('canvas')].map((canvas) => {
    const bytes = canvas.getContext('2d').getImageData(0, 0, canvas.width, 1).data, n = bytes.findIndex((byte, n) => n % 4 === 3 && byte === 255);
    return { name: canvas.parentElement.dataset.kind, count: canvas.previousElementSibling.textContent, wide: canvas.width, colour: n < 0 ? null : [...bytes.slice(n - 3, n)] };
  })))`);
  const pdf = await page.pdf({ format: 'A4' });
  must(pdf.length > 5000, 'it prints nothing');
  if (pictures) writeFileSync(`${pictures}/print.pdf`, pdf);
  const painted = await page.evaluate(() => window.painted);
  const blank = painted.filter(({ count, colour }) => !/ 0$/.test(count) && !colour);
  must(blank.length === 0, `${blank.length} of ${painted.length} lanes are blank on paper`);
  // Dark enough for white paper.
  const pale = painted.filter(({ colour }) => colour && (0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]) > 150);
  must(pale.length === 0, `on paper ${pale[0]?.name} has the colours of a dark screen`);
  await page.close();
};

// Without JavaScript all but the maps and the filters is there.
const still = async (page) => {
  const whole = await page.evaluate(() => ({ articles: document.querySelectorAll('article').length, examples: document.querySelectorAll('details').length, cells: document.querySelectorAll('#table td').length }));
  const other = await browser.newPage();
  watch(other);
  await other.setJavaScriptEnabled(false);
  await other.setViewport({ width: 1280, height: 900 });
  await other.goto(url, { waitUntil: 'load' });
  const count = async (what) => (await other.$$(what)).length;
  must(await count('article') === whole.articles && await count('details dl') === whole.examples && await count('#table td') === whole.cells, 'without JavaScript results are missing');
  const text = await other.$eval('body', (body) => body.innerText);
  must(text.trimStart().startsWith('JavaScript is switched off'), `without JavaScript it begins with ${text.slice(0, 60)}`);
  must(!await other.$eval('#filters', (form) => form.checkVisibility()), 'without JavaScript there are filters');
  if (pictures) await other.screenshot({ path: `${pictures}/still.png`, fullPage: true });
  await other.close();
};

try {
  const page = await open();
  // Before everything is unpacked: a filter must not wait for that.
  await filters(page);
  await unpacked(page);
  await filters(page);
  await names(page);
  await links(page);
  await map(page);
  await outcomes(page);
  await contrast(page);
  await examples(page);
  await paper();
  await still(page);
  await views(page);
} catch (error) {
  must(false, error.stack);
} finally {
  await browser.close();
}
process.exit(wrong.length ? 1 : 0);
