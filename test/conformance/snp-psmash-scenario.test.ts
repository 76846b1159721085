// The scenario snp-psmash against counts made by hand.
//
// As it comes: 1 GiB is 262,144 pages in 512 blocks of 2M; page 5 of each of the first 16 blocks becomes shared. The pages
// are written before, so each page that is freed is lost.

import { expect, test } from 'vitest';
import { type CreateVmOptions, createVm, type RunOptions, runScenario } from '../../src/index.ts';

const onThisBuild = (options: CreateVmOptions) => createVm({ ...options, debug: process.env.EPTSIM_BUILD === 'debug' });

const COUNTED = [
  'rmp_updates_private_2m',
  'rmp_updates_private_4k',
  'PSMASH',
  'rmp_faults_psmash',
  'rmp_updates_shared_2m',
  'rmp_updates_shared_4k',
  'cache_flushes',
  'leafs_zapped_direct_2m',
  'leafs_zapped_direct_4k',
  'gfns_zapped_outside_request',
  'exits_hypercall',
  'pages_validated',
  'pages_2m',
  'pages_4k',
] as const;
type Counts = Partial<Record<(typeof COUNTED)[number], number>>;

async function countsOf(set: RunOptions['set'] = {}) {
  const { variants, failures } = await runScenario('snp-psmash', { set, createVm: onThisBuild });
  expect(failures).toBeUndefined();
  return Object.fromEntries(
    variants.map(({ name, steps }) => [
      name,
      Object.fromEntries(
        steps.map((step) => [
          step.name,
          Object.fromEntries(
            COUNTED.flatMap((counter) => (step.counters[counter] !== 0 ? [[counter, step.counters[counter]]] : [])),
          ) as Counts,
        ]),
      ),
    ]),
  );
}

test('2M folios: each page that is freed out of a 2M entry is one PSMASH', async () => {
  const { '2M-folios': steps } = await countsOf();
  // 512 entries of 2M in three buffers of at most 253; each is assigned and mapped as the guest validates it.
  expect(steps['take all as private']).toEqual({
    rmp_updates_private_2m: 512,
    exits_hypercall: 3,
    pages_validated: 262_144,
    pages_2m: 512,
  });
  // The conversion zaps the block's leaf, of which 511 gfns were not asked for: 16 * 511 = 8,176. The hole finds nothing
  // mapped, and gives one page back.
  expect(steps['share pages']).toEqual({
    PSMASH: 16,
    rmp_updates_shared_4k: 16,
    cache_flushes: 16,
    leafs_zapped_direct_2m: 16,
    gfns_zapped_outside_request: 8176,
    exits_hypercall: 16,
    pages_2m: -16,
  });
  // 511 pages of each block, by 4K.
  expect(steps['touch the rest']).toEqual({ pages_4k: 8176 });
  // 496 whole blocks by 2M, 8,176 pages by 4K.
  expect(steps.destroy).toEqual({
    rmp_updates_shared_2m: 496,
    rmp_updates_shared_4k: 8176,
    cache_flushes: 8672,
    leafs_zapped_direct_2m: 496,
    leafs_zapped_direct_4k: 8176,
    pages_2m: -496,
    pages_4k: -8176,
  });
});

test('2M folios, rescinded first: the RMP fault splits the entry, and zaps into the next block', async () => {
  const { '2M-folios-rescinded': steps } = await countsOf();
  // [b * 512 + 5, b * 512 + 517) meets the leaf of block b and that of block b + 1. The first fault zaps blocks 0 and 1; at
  // each further one block b was mapped again by the PVALIDATE: 2 leaves each time. Then the page itself is mapped by 4K,
  // and the conversion zaps that. Outside the request are 5 gfns of block b and 507 of block b + 1: 16 * 512.
  expect(steps['share pages']).toEqual({
    PSMASH: 16,
    rmp_faults_psmash: 16,
    rmp_updates_shared_4k: 16,
    cache_flushes: 16,
    leafs_zapped_direct_2m: 32,
    leafs_zapped_direct_4k: 16,
    gfns_zapped_outside_request: 8192,
    exits_hypercall: 16,
    pages_2m: -17,
  });
});

test('4K folios: no 2M entry, no PSMASH, and 262,144 updates instead of 512', async () => {
  const { '4K-folios': steps } = await countsOf();
  expect(steps['take all as private']).toEqual({
    rmp_updates_private_4k: 262_144,
    exits_hypercall: 3,
    pages_validated: 262_144,
    pages_4k: 262_144,
  });
  expect(steps['share pages']).toEqual({
    rmp_updates_shared_4k: 16,
    cache_flushes: 16,
    leafs_zapped_direct_4k: 16,
    exits_hypercall: 16,
    pages_4k: -16,
  });
});

test.each<[RunOptions['set'], Counts]>([
  [
    { size: '2MiB', blocks: 1, page: 511 },
    { PSMASH: 1, gfns_zapped_outside_request: 511 },
  ],
  [
    { size: '4MiB', blocks: 2, page: 0 },
    { PSMASH: 2, gfns_zapped_outside_request: 1022 },
  ],
  [{ size: '2MiB', blocks: 0 }, {}],
])('other parameters: %j', async (set, counts) => {
  const { '2M-folios': steps } = await countsOf(set);
  const { PSMASH, gfns_zapped_outside_request: outside } = steps['share pages'];
  expect({ PSMASH, outside }).toEqual({ PSMASH: counts.PSMASH, outside: counts.gfns_zapped_outside_request });
});
