// Writes down where in its source a Node.js program calls each function of fs that changes files, for
// crashtest to read. It is loaded by NODE_OPTIONS; the program is not changed.
//
// A line of the file CRASHTEST_FRAMES: path NUL source NUL line NUL function, then NUL source ... of the
// callers, then a newline.
'use strict';
const fs = require('fs');
const paths = require('path');
const { fileURLToPath } = require('url');

const FRAMES = 8;
const write = fs.writeSync;
const channel = process.env.CRASHTEST_FRAMES && fs.openSync(process.env.CRASHTEST_FRAMES, 'a');
const opened = new Map();

function frames() {
  const prepare = Error.prepareStackTrace;
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = 50;
  Error.prepareStackTrace = (_, sites) => sites;
  const sites = new Error().stack;
  Error.prepareStackTrace = prepare;
  Error.stackTraceLimit = limit;
  return (Array.isArray(sites) ? sites : [])
    .map((site) => [site.getFileName() || '', site.getLineNumber() || 0, site.getFunctionName() || '(top)'])
    .filter(([file]) => file && file !== __filename && !file.startsWith('node:'))
    .map(([file, ...rest]) => [file.startsWith('file:') ? fileURLToPath(file) : file, ...rest])
    .slice(0, FRAMES);
}

function note(target) {
  const about = typeof target === 'number' ? opened.get(target) : target;
  if (about === undefined || about === null) return;
  const path = about instanceof URL ? fileURLToPath(about) : paths.resolve(String(about));
  const stack = frames();
  if (stack.length > 0) write(channel, [path, ...stack.flat()].join('\0') + '\n');
}

// Calls whose second argument is a path that changes too.
const TWO = new Set(['rename', 'link', 'symlink', 'copyFile'].flatMap((name) => [name, `${name}Sync`]));

// What is given as the first argument: a path, a descriptor or a FileHandle.
const subject = (argument) => (argument && typeof argument.fd === 'number' ? argument.fd : argument);

function wrap(object, name, after) {
  const original = object[name];
  if (typeof original !== 'function') return;
  const wrapped = function (...given) {
    note(subject(given[0]));
    if (TWO.has(name)) note(given[1]);
    return after ? after.call(this, original, given) : original.apply(this, given);
  };
  Object.defineProperty(wrapped, 'name', { value: name });
  const promisified = Object.getOwnPropertyDescriptor(original, require('util').promisify.custom);
  if (promisified) Object.defineProperty(wrapped, require('util').promisify.custom, promisified);
  object[name] = wrapped;
}

const CHANGING = ['writeFile', 'appendFile', 'write', 'writev', 'truncate', 'ftruncate', 'fsync', 'fdatasync',
  'close', 'rename', 'unlink', 'rm', 'link', 'symlink', 'mkdir', 'rmdir', 'copyFile'];
const HANDLE = ['writeFile', 'appendFile', 'write', 'writev', 'truncate', 'sync', 'datasync', 'close'];

function wrapHandles(handle) {
  const prototype = Object.getPrototypeOf(handle);
  if (!prototype || prototype.crashtest) return;
  Object.defineProperty(prototype, 'crashtest', { value: true });
  for (const name of HANDLE) {
    const original = prototype[name];
    if (typeof original !== 'function') continue;
    prototype[name] = function (...given) {
      note(this.fd);
      return original.apply(this, given);
    };
  }
}

if (channel) {
  // Its calls come later, from nobody's function.
  wrap(fs, 'createWriteStream');
  for (const name of CHANGING) {
    wrap(fs, name);
    wrap(fs, `${name}Sync`);
    wrap(fs.promises, name);
  }
  wrap(fs, 'openSync', function (original, given) {
    const descriptor = original.apply(this, given);
    opened.set(descriptor, given[0]);
    return descriptor;
  });
  wrap(fs, 'open', function (original, given) {
    const callback = given[given.length - 1];
    if (typeof callback === 'function') {
      given[given.length - 1] = function (error, descriptor) {
        if (!error) opened.set(descriptor, given[0]);
        return callback.apply(this, arguments);
      };
    }
    return original.apply(this, given);
  });
  wrap(fs.promises, 'open', async function (original, given) {
    const handle = await original.apply(this, given);
    opened.set(handle.fd, given[0]);
    wrapHandles(handle);
    return handle;
  });
  require('module').syncBuiltinESMExports();
}
