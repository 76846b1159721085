// Builds the engine before the tests, where it is older than its sources. EPTSIM_NO_BUILD=1 tests what dist/ holds.

import { spawnSync } from 'node:child_process';

export default function buildFirst(): void {
  if (process.env.EPTSIM_NO_BUILD === '1') return;
  const { status } = spawnSync(process.execPath, ['scripts/run.mjs', 'build', 'engine'], { stdio: 'inherit' });
  if (status !== 0) throw new Error('the engine did not build');
}
