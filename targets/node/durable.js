#!/usr/bin/env node
'use strict'
// Sound: a lock, a new file with a checksum, fsync, rename, fsync of the directory, a second copy.

const fs = require('fs')
const path = require('path')
const net = require('net')
const crypto = require('crypto')
const { VERSIONS, sample } = require('./state.js')

// --- lock
// Holds the lock of a state for as long as this process lives. Node.js has no flock; a socket without
// a file (Linux) is closed with its process as well.
function lock(file) {
  return new Promise((resolve, reject) => {
    const server = net.createServer()
    server.once('error', () => reject(new Error(`another process works with ${file}`)))
    server.listen(`\0${path.resolve(file)}`, () => resolve(server.unref()))
  })
}
// --- end

// --- replace: const fs = require('fs') | const path = require('path')
// Puts bytes in the place of a file, so that it is the old or the new one, and on disk.
function replace(file, data) {
  const directory = path.dirname(path.resolve(file))
  // What a process of this number has left there is overwritten.
  const temp = path.join(directory, `.state-${process.pid}.tmp`)
  try {
    fs.writeFileSync(temp, data, { flush: true })
    fs.renameSync(temp, file)
  } catch (error) {
    fs.rmSync(temp, { force: true })
    throw error
  }
  const handle = fs.openSync(directory, 'r')
  try {
    fs.fsyncSync(handle)
  } finally {
    fs.closeSync(handle)
  }
}
// --- end

// --- save: const crypto = require('crypto')
const sha256 = (text) => crypto.createHash('sha256').update(text).digest('hex')

// Saves twice, so that one copy can be damaged; it is saved when this returns.
function save(file, sequence, state) {
  const rest = `"sequence": ${sequence}, "state": ${JSON.stringify(state)}}\n`
  const data = `{"sha256": "${sha256(rest)}", ${rest}`
  replace(file, data)
  replace(`${file}.copy`, data)
}
// --- end

// --- load
// What is in a file, if all of it is there.
function whole(file) {
  try {
    const text = fs.readFileSync(file, 'latin1')
    const bytes = Buffer.from(text, 'latin1')
    const at = text.indexOf('", ')
    const rest = bytes.subarray(at + 3)
    if (text.slice(0, at) !== `{"sha256": "${sha256(rest)}`) return undefined
    return JSON.parse(bytes.toString())
  } catch {
    return undefined
  }
}

// The newest state that is whole; throws if there is none, though there was one. What is damaged is kept
// aside.
function load(file, fallback) {
  const copies = [file, `${file}.copy`]
  const found = copies.map(whole)
  const exists = (copy) => fs.lstatSync(copy, { throwIfNoEntry: false }) !== undefined
  if (!found[0] && !found[1]) {
    if (copies.some(exists)) throw new Error(`${file} and its copy are damaged`)
    console.error('there is no state: beginning anew')
    return fallback
  }
  const newer = (one, other) => (!one || (other && other.sequence > one.sequence) ? other : one)
  const newest = newer(found[0], found[1])
  if (newest !== found[0]) {
    console.error(`${file} is damaged or old: taking its copy`)
    if (exists(file)) fs.renameSync(file, `${file}.damaged-${Date.now()}`)
  }
  return newest.state
}
// --- end

async function main() {
  await lock('state.json')
  for (const name of fs.readdirSync('.')) {
    // A process was killed in the middle of a save.
    if (name.startsWith('.state-') && name.endsWith('.tmp')) fs.unlinkSync(name)
  }
  const state = load('state.json', null)
  if (process.argv[2] === 'load') {
    console.log(JSON.stringify(state))
    return
  }
  for (let version = 1; version <= VERSIONS; version++) {
    save('state.json', version, sample(version))
    console.log('saved', version)
  }
}

main().catch((error) => {
  console.error(error.message)
  process.exitCode = 1
})
