// Compile Contracts.sol into contracts.json: `node build.js [directory with node_modules/solc]` (default: .chains/node).
// Tests do not need it: what it makes is in the repository.
const fs = require('fs');
const path = require('path');

const root = process.argv[2] || path.join(__dirname, '..', '..', '..', '.chains', 'node');
const solc = require(path.resolve(root, 'node_modules', 'solc'));
const input = {
  language: 'Solidity',
  sources: { 'Contracts.sol': { content: fs.readFileSync(path.join(__dirname, 'Contracts.sol'), 'utf8') } },
  settings: {
    optimizer: { enabled: true, runs: 200 },
    evmVersion: 'paris',
    metadata: { appendCBOR: false, bytecodeHash: 'none' },
    outputSelection: { '*': { '*': ['abi', 'evm.bytecode.object'] } },
  },
};
const output = JSON.parse(solc.compile(JSON.stringify(input)));
const wrong = (output.errors || []).filter((one) => one.severity === 'error');
if (wrong.length) {
  console.error(wrong.map((one) => one.formattedMessage).join('\n'));
  process.exit(1);
}
const made = { compiler: solc.version(), contracts: {} };
for (const [name, one] of Object.entries(output.contracts['Contracts.sol'])) {
  const functions = one.abi.filter((entry) => entry.type === 'function' || entry.type === 'constructor');
  made.contracts[name] = {
    inputs: Object.fromEntries(functions.map((entry) => [entry.name || '', entry.inputs.map((input) => input.type)])),
    bytecode: '0x' + one.evm.bytecode.object,
  };
}
fs.writeFileSync(path.join(__dirname, 'contracts.json'), JSON.stringify(made, null, 1) + '\n');
