// Builds the engine and the scenarios before the tests, where they are older than their sources.
// EPTSIM_NO_BUILD=1 tests what dist/ holds.

import { spawnSync } from 'node:child_process';

export default function buildFirst(): void {
  if (process.env.EPTSIM_NO_BUILD === '1') return;
  const { status } = spawnSync(process.execPath, ['scripts/run.mjs', 'build', 'engine', 'scenarios'], {
    stdio: 'inherit',
  });
  if (status !== 0) throw new Error('the engine or the scenarios did not build');
}
