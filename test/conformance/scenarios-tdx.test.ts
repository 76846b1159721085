// The scenarios of TDX against counts made by hand.

import { expect, test } from 'vitest';
import { type CreateVmOptions, createVm, type RunOptions, runScenario } from '../../src/index.ts';

const onThisBuild = (options: CreateVmOptions) => createVm({ ...options, debug: process.env.EPTSIM_BUILD === 'debug' });

/** The counters of each variant's measured step, and of each step by its name; nothing may have failed. */
async function run(name: string, set: RunOptions['set'] = {}) {
  const { variants, failures } = await runScenario(name, { set, createVm: onThisBuild });
  expect(failures).toBeUndefined();
  return variants.map((variant) => ({
    ...variant,
    step: (wanted: string) => {
      const found = variant.steps.find((step) => step.name === wanted);
      if (found === undefined) throw new Error(`${variant.name} has no step ${wanted}`);
      return found;
    },
  }));
}
const REMOVAL = ['TDH.MEM.RANGE.BLOCK', 'TDH.MEM.TRACK', 'kicks', 'TDH.MEM.PAGE.REMOVE', 'TDH.PHYMEM.PAGE.WBINVD'];
const removalsOf = (counters: Record<string, number>) => REMOVAL.map((name) => counters[name]);
const every = (count: number) => REMOVAL.map(() => count);

// Vector 13.6: 2 MiB are 512 pages; with 8 vCPUs inside, 512 * 8 = 4,096 IPIs. A vCPU comes back after each kick, into a newer
// epoch: as many entries and as many flushes. One flush for the range, seq +1, and the same call again is nothing.
test.each<[string, number, number, number]>([
  ['2MiB', 8, 512, 4096],
  // 64 MiB are 16,384 pages; two vCPUs.
  ['64MiB', 2, 16_384, 32_768],
  // 1 GiB is 262,144 pages; 262,144 * 8 = 2,097,152.
  ['1GiB', 8, 262_144, 2_097_152],
])('td-to-shared: %s with %i vCPUs inside is %i of each call, and %i IPIs', async (size, vcpus, pages, ipis) => {
  const [{ counters, losses, step }] = await run('td-to-shared', { size, vcpus });
  expect(removalsOf(counters)).toEqual(every(pages));
  expect(counters).toMatchObject({
    kick_ipis: ipis,
    'TDH.VP.ENTER': ipis,
    td_tlb_flushes: ipis,
    pages_cleared: pages,
    remote_tlb_flush_requests: 1,
    invalidations: 1,
    tables: 0,
  });
  expect(losses).toMatchObject({ privatePagesLost: pages, pagesToAccept: pages, gfnsZappedOutside: 0 });
  expect(removalsOf(step('convert again').counters)).toEqual(every(0));
});

// R-TDX-7: three rounds of 512 pages: 1,536 lost, as many AUGs and ACCEPTs. The tables are there from the first accept on, and
// the file keeps its pages. SNP asks its module nothing and loses nothing.
test('td-back-and-forth: each round loses every page, and takes it anew', async () => {
  const [tdx, snp] = await run('td-back-and-forth');
  expect(removalsOf(tdx.counters)).toEqual(every(1536));
  expect(tdx.counters).toMatchObject({ 'TDH.MEM.PAGE.AUG': 1536, pages_accepted: 1536, 'TDH.MEM.SEPT.ADD': 0 });
  expect(tdx.losses).toMatchObject({ privatePagesLost: 1536, pagesToAccept: 1536 });
  expect(snp.losses).toMatchObject({ privatePagesLost: 0, pagesToAccept: 0 });
  expect(snp.counters).toMatchObject({ 'TDH.MEM.PAGE.AUG': 0, gmem_pages_allocated: 0 });
});

// 64 MiB are 16,384 pages, in 32 tables of 4K entries. Deleting the slot frees no table; what comes back is AUG and ACCEPT.
test('td-slot-delete: the pages of the file stay, what a TD had in them does not', async () => {
  const [tdx, snp] = await run('td-slot-delete');
  expect(removalsOf(tdx.counters)).toEqual(every(16_384));
  expect(tdx.losses.privatePagesLost).toBe(16_384);
  expect(tdx.step('use again').counters).toMatchObject({
    'TDH.MEM.PAGE.AUG': 16_384,
    pages_accepted: 16_384,
    'TDH.MEM.SEPT.ADD': 0,
    gmem_pages_allocated: 0,
  });
  expect(removalsOf(snp.counters)).toEqual(every(0));
  expect(snp.losses.privatePagesLost).toBe(0);
});

// 2 MiB are 512 gfns, of which 511 are shared and one, gfn 256, is private and in use.
test('rfc-four-steps: with the filter the page is there; without it the access kills the TD, or is a #VE', async () => {
  const [filtered, unfiltered, withVe] = await run('rfc-four-steps');
  expect(filtered.counters).toMatchObject({ leafs_zapped_direct_4k: 511, leafs_zapped_mirror_4k: 0 });
  expect(filtered.losses).toMatchObject({ privatePagesLost: 0, pagesToAccept: 0 });
  expect(removalsOf(filtered.counters)).toEqual(every(0));
  for (const variant of [unfiltered, withVe]) {
    expect(variant.counters).toMatchObject({ leafs_zapped_direct_4k: 511, leafs_zapped_mirror_4k: 1 });
    expect(removalsOf(variant.counters)).toEqual(every(1));
    expect(variant.losses).toMatchObject({ privatePagesLost: 1, pagesToAccept: 1 });
    // KVM gives the guest another page, which it has not accepted.
    expect(variant.step('touch the page').counters).toMatchObject({ 'TDH.MEM.PAGE.AUG': 1, pages_accepted: 0 });
  }
  expect(filtered.step('touch the page').counters['TDH.MEM.PAGE.AUG']).toBe(0);
});

// 16 MiB are 4,096 pages in 8 tables of 4K entries, below one table each of 2M and 1G entries: 10 tables.
test('td-teardown: a page costs five calls and a kick, or one RECLAIM after early termination', async () => {
  const [plain, early] = await run('td-teardown', { size: '16MiB', vcpus: 4 });
  expect(removalsOf(plain.counters)).toEqual(every(4096));
  expect(plain.counters).toMatchObject({ 'TDH.PHYMEM.PAGE.RECLAIM': 10, pages_cleared: 4106 });
  expect(removalsOf(early.counters)).toEqual(every(0));
  expect(early.counters).toMatchObject({ 'TDH.PHYMEM.PAGE.RECLAIM': 4106, pages_cleared: 4106 });
  for (const { counters, losses } of [plain, early]) {
    expect(counters).toMatchObject({ 'TDH.VP.FLUSH': 4, 'TDH.MNG.KEY.FREEID': 1, tables_freed: 10, pages_leaked: 0 });
    expect(losses.privatePagesLost).toBe(4096);
  }
});
