#!/usr/bin/env node
'use strict'
// Saves by fs.writeFileSync over the state file. Bad: a kill leaves half a file.

const fs = require('fs')
const { VERSIONS, sample } = require('./state.js')

for (let version = 1; version <= VERSIONS; version++) {
  fs.writeFileSync('state.json', JSON.stringify(sample(version)))
  console.log('saved', version)
}
