// The start scenario against counts made by hand: what the RFC's filter saves, in the case it was written for.
//
// A page is 4 KiB, so 1 GiB is 262,144 pages. The prepared range starts at 4 GiB; its first part is shared and mapped, the
// rest of the guest is private, mapped, accepted (on a TD) and written. The conversion is to private, so only shared
// leaves have to go. On a TD they are in the direct tree and the private ones in the mirror; SNP and a software-protected
// VM have one tree for both.

import { describe, expect, test } from 'vitest';
import { type CreateVmOptions, createVm, type RunOptions, runScenario, type StepResult } from '../../src/index.ts';

const onThisBuild = (options: CreateVmOptions) => createVm({ ...options, debug: process.env.EPTSIM_BUILD === 'debug' });

/** The counts a row of the table names; every other leaf count must be 0. */
interface Counts {
  direct4k?: number;
  direct2m?: number;
  mirror4k?: number;
  outside?: number;
  lost?: number;
  stale?: number;
  flushes?: number;
}

function countsOf({ counters, losses }: StepResult): Required<Counts> & { others: number; toAccept: number } {
  return {
    direct4k: counters.leafs_zapped_direct_4k,
    direct2m: counters.leafs_zapped_direct_2m,
    mirror4k: counters.leafs_zapped_mirror_4k,
    others: counters.leafs_zapped_direct_1g + counters.leafs_zapped_mirror_2m + counters.leafs_zapped_mirror_1g,
    outside: counters.gfns_zapped_outside_request,
    lost: losses.privatePagesLost,
    toAccept: losses.pagesToAccept,
    stale: losses.staleSharedLeaves,
    flushes: counters.remote_tlb_flush_requests,
  };
}

async function run(set: RunOptions['set'] = {}) {
  const { variants, failures } = await runScenario('convert-already-private', { set, createVm: onThisBuild });
  expect(failures).toBeUndefined();
  expect(variants.map(({ name }) => name)).toEqual(['tdx-filtered', 'tdx-unfiltered', 'snp', 'sw-protected']);
  return Object.fromEntries(variants.map((variant) => [variant.name, variant]));
}

const settings: { title: string; set: RunOptions['set']; rows: Record<string, Counts> }[] = [
  {
    // Shared: [4 GiB, 4.5 GiB) = 131,072 pages. Private in the request: [4.5 GiB, 5 GiB) = 131,072 pages.
    title: 'as it comes: 1 GiB, half of it private, 4K leaves',
    set: {},
    rows: {
      'tdx-filtered': { direct4k: 131_072, flushes: 1 },
      // 131,072 + 131,072 = 262,144 leaves; each private page loses its content and its acceptance.
      'tdx-unfiltered': { direct4k: 131_072, mirror4k: 131_072, lost: 131_072, flushes: 1 },
      // The RFC's SNP callback zaps nothing: the 131,072 shared leaves stay.
      snp: { stale: 131_072 },
      'sw-protected': { direct4k: 262_144, flushes: 1 },
    },
  },
  {
    // Shared: [4 GiB, 4.5 GiB) = 256 leaves of 2M. The request is [4 GiB + 4 KiB, 5 GiB + 4 KiB): it cuts the first
    // shared leaf after 1 page, which goes with it, and holds 131,072 private pages of the prepared range and 1 behind.
    title: 'one page late over 2M leaves',
    set: { offset: '4KiB', sharedLeaf: '2M' },
    rows: {
      'tdx-filtered': { direct2m: 256, outside: 1, flushes: 1 },
      'tdx-unfiltered': { direct2m: 256, mirror4k: 131_073, outside: 1, lost: 131_073, flushes: 1 },
      snp: { stale: 256 },
      'sw-protected': { direct2m: 256, direct4k: 131_073, outside: 1, flushes: 1 },
    },
  },
  {
    // 512 MiB = 131,072 pages. Shared: three quarters = 98,304 pages, private: one quarter = 32,768 pages. The request
    // starts 64 MiB = 16,384 pages late: 81,920 shared pages, 32,768 private ones and the 16,384 behind them.
    title: 'three quarters shared, 64 MiB late, in 8 GiB',
    set: { size: '8GiB', convertSize: '512MiB', privateShare: 0.25, offset: '64MiB' },
    rows: {
      'tdx-filtered': { direct4k: 81_920, flushes: 1 },
      'tdx-unfiltered': { direct4k: 81_920, mirror4k: 49_152, lost: 49_152, flushes: 1 },
      snp: { stale: 81_920 },
      'sw-protected': { direct4k: 131_072, flushes: 1 },
    },
  },
  {
    // All of it is private already: by the no-op rule nothing happens at all, whatever the filter.
    title: 'nothing shared',
    set: { size: '8GiB', privateShare: 1 },
    rows: { 'tdx-filtered': {}, 'tdx-unfiltered': {}, snp: {}, 'sw-protected': {} },
  },
  {
    // All 262,144 pages are shared: no filter can spare anything.
    title: 'nothing private',
    set: { size: '8GiB', privateShare: 0 },
    rows: {
      'tdx-filtered': { direct4k: 262_144, flushes: 1 },
      'tdx-unfiltered': { direct4k: 262_144, flushes: 1 },
      snp: { stale: 262_144 },
      'sw-protected': { direct4k: 262_144, flushes: 1 },
    },
  },
];

describe.each(settings)('converting a range that is partly private already, $title', ({ set, rows }) => {
  const zero = { direct4k: 0, direct2m: 0, mirror4k: 0, others: 0, outside: 0, lost: 0, stale: 0, flushes: 0 };

  test('counts what the count by hand says', async () => {
    const variants = await run(set);
    for (const [name, row] of Object.entries(rows)) {
      // What a TD loses, and nothing else, its guest must accept again.
      expect(countsOf(variants[name]), name).toEqual({ ...zero, toAccept: row.lost ?? 0, ...row });
    }
  });
});

describe('the start scenario, as it comes', () => {
  test('takes a TD that zaps both trees four SEAMCALLs and a kick for each private page', async () => {
    const { 'tdx-filtered': filtered, 'tdx-unfiltered': unfiltered } = await run();
    const calls = ['TDH.MEM.RANGE.BLOCK', 'TDH.MEM.TRACK', 'kicks', 'TDH.MEM.PAGE.REMOVE', 'TDH.PHYMEM.PAGE.WBINVD'];
    expect(calls.map((name) => filtered.counters[name])).toEqual([0, 0, 0, 0, 0]);
    expect(calls.map((name) => unfiltered.counters[name])).toEqual(calls.map(() => 131_072));
  });

  test('frees no page table in the conversion and visits the entries KVM would', async () => {
    const variants = await run();
    expect(Object.values(variants).map(({ counters }) => counters.tables_freed)).toEqual([0, 0, 0, 0]);
    // A TD of 48 bits has 4 levels: 1 entry of level 4, 1 of level 3, 512 of level 2, of which 256 lead to a table of 512.
    const oneTree = 1 + 1 + 512 + 256 * 512;
    expect(variants['tdx-filtered'].counters.entries_visited).toBe(oneTree);
    expect(variants['tdx-unfiltered'].counters.entries_visited).toBe(2 * oneTree);
    expect(variants.snp.counters.entries_visited).toBe(0);
    // 52 physical bits: 5 levels, and all 512 entries of level 2 lead to a table.
    expect(variants['sw-protected'].counters.entries_visited).toBe(1 + 1 + 1 + 512 + 512 * 512);
  });

  test('ends with the guest destroyed: every leaf and every page table is gone', async () => {
    const variants = await run();
    const destroyed = Object.fromEntries(
      Object.entries(variants).map(([name, { steps }]) => {
        const last = steps.at(-1) as StepResult;
        expect(last.name).toBe('destroy');
        const { direct4k, mirror4k } = countsOf(last);
        return [name, { direct4k, mirror4k, tables: last.counters.tables_freed }];
      }),
    );
    // 64 GiB are 16,777,216 pages; all but the 131,072 shared ones were mapped private: 16,646,144.
    // Tables of a TD's mirror: 32,768 - 256 of level 1, 64 of level 2, 1 of level 3; of its direct tree: 256, 1 and 1.
    const mirrorTables = 32_512 + 64 + 1;
    const directTables = 256 + 1 + 1;
    // One tree, 5 levels: 32,768 of level 1, 64 of level 2, 1 of level 3, 1 of level 4.
    const oneTree = 32_768 + 64 + 1 + 1;
    expect(destroyed).toEqual({
      'tdx-filtered': { direct4k: 0, mirror4k: 16_646_144, tables: mirrorTables + directTables },
      'tdx-unfiltered': { direct4k: 0, mirror4k: 16_646_144 - 131_072, tables: mirrorTables + directTables },
      snp: { direct4k: 16_777_216, mirror4k: 0, tables: oneTree },
      'sw-protected': { direct4k: 16_777_216 - 262_144, mirror4k: 0, tables: oneTree },
    });
  });

  test('leaves every variant with the steps of the scenario', async () => {
    const variants = await run({ size: '8GiB' });
    for (const { steps, counters } of Object.values(variants)) {
      expect(steps.map(({ name }) => name)).toEqual([
        'memory',
        'prepare attributes',
        'map shared',
        'map private',
        'accept private',
        'write private',
        'convert',
        'destroy',
      ]);
      expect(counters).toEqual(steps[6].counters);
    }
  });
});

describe('what a parameter can be', () => {
  test.each<[RunOptions['set'], RegExp]>([
    [{ size: '4GiB' }, /parameter size: '4GiB' is too small; it must be at least 5GiB/],
    [{ size: '8TiB' }, /parameter size: '8TiB' is too large; .*at most 7TiB/],
    [{ size: 'all' }, /parameter size: 'all' is no quantity: unknown name 'all'/],
    [{ convertSize: 100 }, /parameter convertSize: 100 is too small; it must be at least 4KiB/],
    [{ convertSize: 4097 }, /parameter convertSize: 4097 does not fit; .*a multiple of 4KiB/],
    [{ privateShare: 1.5 }, /parameter privateShare: 1.5 is too large; it must be at least 0, at most 1/],
    [{ privateShare: Number.NaN }, /parameter privateShare: NaN is no quantity/],
    [{ sharedLeaf: '1G' }, /parameter sharedLeaf: '1G' is none of 4K, 2M/],
    [{ offset: '60GiB' }, /the conversion must end inside the guest \(size 64GiB/],
    [{ convertsize: '1GiB' }, /no parameter is named 'convertsize'; did you mean convertSize\?/],
  ])('%j is refused', async (set, message) => {
    await expect(runScenario('convert-already-private', { set })).rejects.toThrow(message);
  });

  test('a scenario that does not exist is answered with those that do', async () => {
    await expect(runScenario('convert-alredy-private')).rejects.toThrow('did you mean convert-already-private?');
  });
});
