// td-zap-policies: what each policy costs, counted by hand.
//
// The conversion of 4 MiB from 1 MiB up covers gfns [256, 1280): 1,024 pages, of three 2M regions the second half of the
// first, all of the second, the first half of the third.

import { expect, test } from 'vitest';
import { runScenario, type ScenarioResult, scenarioNamed } from '../../src/index.ts';

const CALLS = [
  'TDH.MEM.RANGE.BLOCK',
  'TDH.MEM.TRACK',
  'kicks',
  'kick_ipis',
  'TDH.MEM.PAGE.DEMOTE',
  'TDH.MEM.PAGE.REMOVE',
  'TDH.PHYMEM.PAGE.WBINVD',
] as const;

const result: ScenarioResult = await runScenario(scenarioNamed('td-zap-policies'));

function of(name: string) {
  const variant = result.variants.find((one) => one.name === name);
  if (variant === undefined) throw new Error(`no variant ${name}`);
  const { privatePagesLost, gfnsZappedOutside } = variant.losses;
  return { calls: CALLS.map((call) => variant.counters[call]), lost: privatePagesLost, outside: gfnsZappedOutside };
}

test.each<[string, number[], number, number]>([
  // One of each call a page; each kick takes the 8 vCPUs inside out.
  ['4k-pages', [1024, 1024, 1024, 8 * 1024, 0, 1024, 1024], 1024, 0],
  // Three leaves go whole: 1,536 pages, 512 of them outside. WBINVD is for 4K.
  ['2m-whole-leaf', [3, 3, 3, 8 * 3, 0, 3, 1536], 1536, 512],
  // Three splits, each a BLOCK, a TRACK and a DEMOTE, then 1,024 pages of 4K.
  ['2m-split-first', [3 + 1024, 3 + 1024, 3 + 1024, 8 * (3 + 1024), 3, 1024, 1024], 1024, 0],
  // Two splits; then 256 pages, one leaf of 2M, 256 pages.
  ['2m-split-boundary', [2 + 513, 2 + 513, 2 + 513, 8 * (2 + 513), 2, 513, 1024], 1024, 0],
  // One TRACK and one kick for the walk.
  ['4k-batched-track', [1024, 1, 1, 8, 0, 1024, 1024], 1024, 0],
  // A split needs its own TRACK before its DEMOTE: two, and one for the walk.
  ['2m-boundary-batched', [2 + 513, 2 + 1, 2 + 1, 8 * 3, 2, 513, 1024], 1024, 0],
])('%s', (name, calls, lost, outside) => {
  expect(of(name)).toEqual({ calls, lost, outside });
});

test('the expectations of the file hold', () => {
  expect(result.failures).toBeUndefined();
});
