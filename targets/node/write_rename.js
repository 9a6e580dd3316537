#!/usr/bin/env node
'use strict'
// Saves to a temp file, asynchronously, and renames it into place.

const fs = require('fs/promises')
const { VERSIONS, sample } = require('./state.js')

async function save(path, state) {
  await fs.writeFile(path + '.tmp', JSON.stringify(state))
  await fs.rename(path + '.tmp', path)
}

async function main() {
  for (let version = 1; version <= VERSIONS; version++) {
    await save('state.json', sample(version))
    console.log('saved', version)
  }
}

main()
