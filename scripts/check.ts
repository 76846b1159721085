// Everything that must hold before a commit: format, lint, types, asc without warnings, facts, tests.
// Usage: node scripts/run.mjs check [--no-tests]
//
// A failed step does not stop the next one, so that one run shows all there is to mend.

import { spawnSync } from 'node:child_process';

const node = process.execPath;
const colours = process.stdout.isTTY ? 'force' : 'off';
const steps: { name: string; command: string[] }[] = [
  { name: 'format and lint', command: ['node_modules/@biomejs/biome/bin/biome', 'ci', `--colors=${colours}`, '.'] },
  { name: 'build (asc without warnings, types of the API)', command: ['scripts/run.mjs', 'build'] },
  { name: 'types', command: ['node_modules/typescript/bin/tsc', '-p', '.'] },
  { name: 'types of assembly', command: ['node_modules/typescript/bin/tsc', '-p', 'assembly'] },
  { name: 'kernel map is current', command: ['scripts/run.mjs', 'kernel-map', '--check'] },
  { name: 'memory map is current', command: ['scripts/run.mjs', 'memory-map', '--check'] },
  { name: 'conformance: no mismatch, and its table is current', command: ['scripts/run.mjs', 'fidelity', '--check'] },
  { name: 'size of the engine', command: ['node_modules/size-limit/bin.js'] },
  { name: 'facts: links, dead files, imports', command: ['scripts/run.mjs', 'facts'] },
];
if (!process.argv.includes('--no-tests')) {
  steps.push({ name: 'tests', command: ['node_modules/vitest/vitest.mjs', 'run'] });
}

const failed: string[] = [];
for (const { name, command } of steps) {
  process.stderr.write(`\n== ${name}\n`);
  if (spawnSync(node, command, { stdio: 'inherit' }).status !== 0) failed.push(name);
}
process.stderr.write(failed.length === 0 ? '\ncheck: all steps hold\n' : `\ncheck: failed: ${failed.join('; ')}\n`);
process.exitCode = failed.length === 0 ? 0 : 1;
