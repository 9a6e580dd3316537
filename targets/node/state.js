'use strict'
// The state that the Node subjects save: a small trading bot's, about 12 KB of JSON.

exports.VERSIONS = Number(process.env.VERSIONS || 4)

exports.sample = function sample(version) {
  const positions = []
  // Every other version is shorter, so that an overwrite without truncation shows.
  for (let n = 0; n < 200 - 20 * (version % 2); n++) {
    positions.push({ symbol: `SYM${n}`, quantity: n + version, entryPrice: 1000 + 7 * n })
  }
  return { version, currentBalance: 1000000 + 137 * version, positions }
}
