// Builds dist/ before the tests, where it is older than its sources. EPTSIM_NO_BUILD=1 tests what it holds.
//
// The tests import src/ and need the engine and the scenarios. Those of the command and the package need all of dist/ and
// ask for it themselves; it is built here too, so that no file of it changes while tests run.

import { spawnSync } from 'node:child_process';

function build(...parts: string[]): boolean {
  return spawnSync(process.execPath, ['scripts/run.mjs', 'build', ...parts], { stdio: 'inherit' }).status === 0;
}

export default function buildFirst(): void {
  if (process.env.EPTSIM_NO_BUILD === '1') return;
  if (!build('engine', 'scenarios')) throw new Error('the engine or the scenarios did not build');
  if (!build()) console.warn('the API or the command did not build: their tests fail');
}
