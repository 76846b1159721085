// Runs scripts/NAME.ts: Node 20 reads no TypeScript, so esbuild bundles the script first.
// Usage: node scripts/run.mjs NAME [arguments]

import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildSync } from 'esbuild';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const [name, ...rest] = process.argv.slice(2);
if (name === undefined || !/^[a-z][a-z0-9-]*$/.test(name)) {
  process.stderr.write('usage: node scripts/run.mjs NAME [arguments]\n');
  process.exit(2);
}
const outfile = join(root, 'build', 'scripts', `${name}.mjs`);
buildSync({
  absWorkingDir: root,
  entryPoints: [join(root, 'scripts', `${name}.ts`)],
  outfile,
  bundle: true,
  packages: 'external',
  platform: 'node',
  target: 'node20',
  format: 'esm',
  logLevel: 'error',
});
const { status, signal } = spawnSync(process.execPath, [outfile, ...rest], { cwd: root, stdio: 'inherit' });
process.exit(signal === null ? (status ?? 1) : 1);
