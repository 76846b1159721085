// SNP: R-SNP-1 to R-SNP-4, the errors of page-state changes (spec 8.2), RMP faults (8.6), and what the RMP costs.
//
// Where the kernel says so: arch/x86/kvm/svm/sev.c (sev_gmem_prepare, sev_gmem_invalidate, sev_handle_rmp_fault,
// snp_begin_psc, snp_begin_psc_msr), arch/x86/virt/svm/sev.c.

import { describe, expect, test } from 'vitest';
import { createVmSync, type GuestMemfd, type KernelProfile, type PageStateEntry, type Vm } from '../../src/index.ts';
import { isDebugBuild, PAGE, SLOT_HVA } from '../support/make-vm.ts';
import { countersMoved, leavesOf, refusalOf } from '../support/observe.ts';
import { guarded, makeSnp, type SnpVm } from '../support/snp-vm.ts';

const PRIVATE = 8;
const BLOCK = 512;
const MIB2 = BLOCK * PAGE;
const KERNELS: KernelProfile[] = ['rfc-v4', 'linux-6.12', 'linux-6.16'];

const convert = (vm: Vm, start: number, end: number, attributes: number) =>
  vm.setMemoryAttributes({ address: start * PAGE, size: (end - start) * PAGE, attributes });
const touch = (vm: Vm, gfn: number, count = 1) =>
  vm.vcpus[0].access({ gpa: gfn * PAGE, kind: 'write', count, private: true });
const punch = (file: GuestMemfd, page: number, pages = 1) => file.punchHole(page * PAGE, pages * PAGE);

/** The RMP of a file as runs: `0..511 2M @0x200` are assigned as gfn 0x200 and on by 2M entries, `v` if validated. */
function rmpOf({ file, npages }: SnpVm): string[] {
  const runs: { text: string; first: number; last: number; delta: number }[] = [];
  for (let page = 0; page < npages; page++) {
    const entry = file.rmp(page);
    if (!entry.assigned) continue;
    const text = `${entry.level === 2 ? '2M' : '4K'}${entry.validated ? ' v' : ''}`;
    const delta = Number(entry.gpa / 4096n) - page;
    const run = runs.at(-1);
    if (run && run.text === text && run.delta === delta && run.last === page - 1) run.last = page;
    else runs.push({ text, first: page, last: page, delta });
  }
  return runs.map(({ text, first, last, delta }) => `${first}..${last} ${text} @0x${(first + delta).toString(16)}`);
}

const RMP = /^(rmp_|PSMASH|cache_flushes)/;
const rmpMoved = (vm: Vm, call: () => unknown) =>
  Object.fromEntries(Object.entries(countersMoved(vm, call)).filter(([name]) => RMP.test(name)));

describe('assigning and freeing pages', () => {
  test.each(KERNELS)('R-SNP-1 conversion alone changes no RMP entry; freeing does (%s)', (kernel) => {
    const snp = makeSnp({ kernel, npages: 2 * BLOCK });
    const { vm, file } = snp;
    touch(vm, 0, 2 * BLOCK);
    const before = rmpOf(snp);
    expect(before).toEqual(['0..1023 4K @0x0']);
    expect(rmpMoved(vm, () => convert(vm, 0, 700, 0))).toEqual({});
    expect(rmpOf(snp)).toEqual(before);
    expect(rmpMoved(vm, () => convert(vm, 0, 700, PRIVATE))).toEqual({});
    expect(rmpMoved(vm, () => touch(vm, 0, 700))).toEqual({});
    expect(rmpOf(snp)).toEqual(before);
    // The host's side of a conversion to shared, which a VMM sends after it: one update and one cache flush a page.
    expect(rmpMoved(vm, () => punch(file, 0, 700))).toEqual({ rmp_updates_shared_4k: 700, cache_flushes: 700 });
    expect(rmpOf(snp)).toEqual(['700..1023 4K @0x2bc']);
    expect(vm.check()).toEqual([]);
  });

  test('R-SNP-2 a 2M folio of which no page is assigned gets one 2M entry, on the first use of any page', () => {
    const snp = makeSnp({ npages: 2 * BLOCK, folioSize: '2M', startGfn: 0x400 });
    const { vm } = snp;
    expect(countersMoved(vm, () => touch(vm, 0x400 + 77))).toMatchObject({
      rmp_updates_private_2m: 1,
      gmem_pages_allocated: 512,
      pages_2m: 1,
    });
    expect(rmpOf(snp)).toEqual(['0..511 2M @0x400']);
    expect(leavesOf(vm)).toEqual(['1024..1535 2M']);
    // The folio is prepared: other pages of it cost the RMP nothing.
    expect(rmpMoved(vm, () => touch(vm, 0x400 + 400))).toEqual({});
    expect(rmpMoved(vm, () => touch(vm, 0x400 + 600))).toEqual({ rmp_updates_private_2m: 1 });
    expect(vm.check()).toEqual([]);
  });

  test('R-SNP-2 a 4K folio gets a 4K entry', () => {
    const snp = makeSnp({ npages: BLOCK });
    expect(rmpMoved(snp.vm, () => touch(snp.vm, 0, BLOCK))).toEqual({ rmp_updates_private_4k: 512 });
    expect(leavesOf(snp.vm)).toEqual(['0..511 4K']);
  });

  test('R-SNP-2 a 2M folio with an assigned page gets 4K entries, page by page', () => {
    // Bound one page off, the folio's first use assigns a page of 4K; bound aligned, the others follow it.
    const snp = makeSnp({ npages: BLOCK, folioSize: '2M', startGfn: 0x401, slotPages: 64 });
    const { vm } = snp;
    expect(rmpMoved(vm, () => touch(vm, 0x403))).toEqual({ rmp_updates_private_4k: 1 });
    expect(rmpOf(snp)).toEqual(['2..2 4K @0x403']);
    snp.bindAt(0x600, BLOCK);
    convert(vm, 0x600, 0x800, PRIVATE);
    expect(rmpMoved(vm, () => touch(vm, 0x600))).toEqual({ rmp_updates_private_4k: 1 });
    expect(rmpMoved(vm, () => touch(vm, 0x600 + 9))).toEqual({ rmp_updates_private_4k: 1 });
    // What was assigned under the other placement keeps its gpa.
    expect(rmpOf(snp)).toEqual(['0..0 4K @0x600', '2..2 4K @0x403', '9..9 4K @0x609']);
    expect(leavesOf(vm)).toEqual(['1536..1536 4K', '1545..1545 4K']);
  });

  test('R-SNP-3 freeing 4K out of a 2M entry is one PSMASH, then one 4K update', () => {
    const snp = makeSnp({ npages: BLOCK, folioSize: '2M' });
    const { vm, file } = snp;
    touch(vm, 0);
    expect(rmpMoved(vm, () => punch(file, 100))).toEqual({ PSMASH: 1, rmp_updates_shared_4k: 1, cache_flushes: 1 });
    expect(rmpOf(snp)).toEqual(['0..99 4K @0x0', '101..511 4K @0x65']);
    // Split once, the rest goes by 4K.
    expect(rmpMoved(vm, () => punch(file, 101))).toEqual({ rmp_updates_shared_4k: 1, cache_flushes: 1 });
    expect(vm.check()).toEqual([]);
  });

  test.each<[string, number, number, Record<string, number>]>([
    ['a whole entry', 512, 512, { rmp_updates_shared_2m: 1, cache_flushes: 1 }],
    ['all of the file', 0, 2048, { rmp_updates_shared_2m: 4, cache_flushes: 4 }],
    // 512 - 200 = 312 pages of the first, two whole ones, 50 of the last.
    [
      'parts of two and all of two between',
      200,
      512 - 200 + 1024 + 50,
      { PSMASH: 2, rmp_updates_shared_4k: 362, rmp_updates_shared_2m: 2, cache_flushes: 364 },
    ],
    ['the middle of one', 600, 10, { PSMASH: 1, rmp_updates_shared_4k: 10, cache_flushes: 10 }],
  ])('freeing %s', (_, page, pages, expected) => {
    const { vm, file } = makeSnp({ npages: 2048, folioSize: '2M' });
    touch(vm, 0, 2048);
    expect(rmpMoved(vm, () => punch(file, page, pages))).toEqual(expected);
    expect(vm.check()).toEqual([]);
  });

  test('what was allocated and never used privately is freed without a word to the RMP', () => {
    const { vm, file } = makeSnp({ npages: BLOCK, folioSize: '2M' });
    file.allocate(0, MIB2);
    expect(countersMoved(vm, () => file.punchHole(0, MIB2))).toMatchObject({ gmem_pages_freed: 512 });
    expect(vm.stats().cache_flushes).toBe(0);
  });

  test('R-SNP-4 zap and re-fault keep content and entries; freeing loses both', () => {
    const snp = makeSnp({ npages: BLOCK, folioSize: '2M' });
    const { vm, file } = snp;
    vm.vcpus[0].pvalidate({ gpa: 0, size: MIB2, pageSize: '2M' });
    touch(vm, 0, 20);
    expect(vm.unmapGfnRange({ slot: 0, start: 0, end: BLOCK, attrFilter: 3 })).toBe(true);
    expect(leavesOf(vm)).toEqual([]);
    const moved = countersMoved(vm, () => touch(vm, 0, 20));
    expect(moved.gmem_pages_allocated).toBeUndefined();
    expect(rmpOf(snp)).toEqual(['0..511 2M v @0x0']);
    expect(vm.losses().privatePagesLost).toBe(0);
    punch(file, 0, 30);
    expect(vm.losses().privatePagesLost).toBe(20);
    touch(vm, 0, 30);
    // New pages are assigned anew, and not validated.
    expect(rmpOf(snp)).toEqual(['0..29 4K @0x0', '30..511 4K v @0x1e']);
  });

  test('a freed part of a folio comes back as 4K folios; a whole one as a 2M folio', () => {
    const snp = makeSnp({ npages: 2 * BLOCK, folioSize: '2M' });
    const { vm, file } = snp;
    touch(vm, 0, 2 * BLOCK);
    punch(file, 7);
    punch(file, BLOCK, BLOCK);
    touch(vm, 7);
    touch(vm, BLOCK);
    expect(rmpOf(snp)).toEqual(['0..511 4K @0x0', '512..1023 2M @0x200']);
  });

  test('the end of a file that holds no 2M block has 4K folios', () => {
    const snp = makeSnp({ npages: BLOCK + 3, folioSize: '2M' });
    touch(snp.vm, 0, BLOCK + 3);
    expect(rmpOf(snp)).toEqual(['0..511 2M @0x0', '512..514 4K @0x200']);
  });

  test('the last close frees all, by 2M where it can', () => {
    const { vm, file } = makeSnp({ npages: 3 * BLOCK, folioSize: '2M' });
    touch(vm, 0, 3 * BLOCK);
    punch(file, 5);
    // 511 pages of the split block, two whole blocks.
    expect(rmpMoved(vm, () => file.close())).toEqual({
      rmp_updates_shared_4k: 511,
      rmp_updates_shared_2m: 2,
      cache_flushes: 513,
    });
    expect(vm.check()).toEqual([]);
  });

  test('a terabyte is assigned and freed at once', () => {
    const npages = 2 ** 28;
    const vm = createVmSync({ type: 'snp', memory: 2 ** 40, debug: isDebugBuild });
    const file = vm.createGuestMemfd({ size: 2 ** 40, folioSize: '2M' });
    vm.setUserMemoryRegion2({
      slot: 0,
      flags: 4,
      guestPhysAddr: 0,
      memorySize: 2 ** 40,
      userspaceAddr: SLOT_HVA,
      guestMemfd: file.fd,
    });
    vm.setMemoryAttributes({ address: 0, size: 2 ** 40, attributes: PRIVATE });
    expect(vm.vcpus[0].preFaultMemory({ gpa: 0, size: 2 ** 40 }).size).toBe(0n);
    expect(vm.stats()).toMatchObject({ rmp_updates_private_2m: npages / 512, pages_2m: npages / 512, pages_4k: 0 });
    file.punchHole(PAGE, 2 ** 40 - PAGE);
    expect(vm.stats()).toMatchObject({
      PSMASH: 1,
      rmp_updates_shared_4k: 511,
      rmp_updates_shared_2m: npages / 512 - 1,
    });
    expect(vm.memoryUsed).toBeLessThan(2 ** 21);
  });

  test('the events of a first use and of a hole come in order', () => {
    const { vm, file } = makeSnp({ npages: 2 * BLOCK, folioSize: '2M' });
    touch(vm, 3);
    touch(vm, 600);
    expect(vm.trace().filter(({ name }) => name === 'rmp_make_private')).toEqual([
      { name: 'rmp_make_private', page: 0, gfn: 0, level: 2, count: 1 },
      { name: 'rmp_make_private', page: 512, gfn: 512, level: 2, count: 1 },
    ]);
    punch(file, 500, 524);
    const names = vm.trace().flatMap((event) => {
      if (event.name === 'spte_changed') return [`zap ${event.gfn} L${event.level}`];
      if (event.name === 'psmash') return [`psmash ${event.page}`];
      if (event.name === 'rmp_make_shared') return [`shared ${event.page} L${event.level} x${event.count}`];
      return ['flush', 'inv_end'].includes(event.name) ? [event.name] : [];
    });
    expect(names).toEqual([
      'zap 0 L2',
      'zap 512 L2',
      'flush',
      'psmash 0',
      'shared 500 L1 x12',
      'shared 512 L2 x1',
      'inv_end',
    ]);
  });
});

describe('the level of a private mapping', () => {
  test('is the RMP entry’s at most', () => {
    const { vm, file } = makeSnp({ npages: 2 * BLOCK, folioSize: '2M' });
    touch(vm, 0, 2 * BLOCK);
    expect(leavesOf(vm)).toEqual(['0..1023 2M']);
    punch(file, 0);
    touch(vm, 0, BLOCK);
    expect(leavesOf(vm)).toEqual(['0..511 4K', '512..1023 2M']);
  });

  test('is 4K in a mixed region and where gfns are not aligned to the file', () => {
    const mixed = makeSnp({ npages: BLOCK, folioSize: '2M' });
    convert(mixed.vm, 9, 10, 0);
    touch(mixed.vm, 0);
    // The folio is assigned by a 2M entry, which a 4K mapping can't use: the guest's first access splits it.
    expect(leavesOf(mixed.vm)).toEqual(['0..0 4K']);
    expect(mixed.vm.stats()).toMatchObject({ rmp_updates_private_2m: 1, PSMASH: 1, rmp_faults_psmash: 1 });
    const shifted = makeSnp({ npages: 2 * BLOCK, folioSize: '2M', startGfn: 0x601, slotPages: BLOCK });
    touch(shifted.vm, 0x601);
    expect(leavesOf(shifted.vm)).toEqual(['1537..1537 4K']);
    expect(shifted.vm.stats()).toMatchObject({ rmp_updates_private_2m: 0, rmp_updates_private_4k: 1 });
  });

  test('of a software-protected VM with 2M folios is 2M, and knows no RMP', () => {
    const { vm, file } = makeSnp({ type: 'sw-protected', npages: BLOCK, folioSize: '2M' });
    touch(vm, 0);
    expect(leavesOf(vm)).toEqual(['0..511 2M']);
    punch(file, 4);
    touch(vm, 5);
    expect(leavesOf(vm)).toEqual(['5..5 4K']);
    expect(rmpMoved(vm, () => file.close())).toEqual({});
    expect(() => vm.rmp(0)).toThrow(/rmp\(gpa 0\): EINVAL/);
  });

  test('of a TD with 2M folios is 4K', () => {
    const { vm } = makeSnp({ type: 'tdx', npages: BLOCK, folioSize: '2M' });
    vm.vcpus[0].accept({ gpa: 0, size: MIB2 });
    expect(leavesOf(vm, 'mirror')).toEqual(['0..511 4K']);
  });
});

describe('RMP faults', () => {
  test('a fault on a shared gfn is ignored', () => {
    const { vm } = makeSnp({ npages: 16 });
    convert(vm, 0, 16, 0);
    expect(vm.vcpus[0].rmpFault({ gpa: 0 })).toBe('not-private');
    expect(vm.stats()).toMatchObject({ rmp_faults_ignored: 1, gmem_pages_allocated: 0 });
  });

  test('a fault where no slot is, or one without guest_memfd, is ignored', () => {
    const { vm } = makeSnp({ npages: 16 });
    convert(vm, 0x1000, 0x1001, PRIVATE);
    expect(vm.vcpus[0].rmpFault({ gpa: 0x1000 * PAGE })).toBe('no-slot');
    vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0x1000 * PAGE, memorySize: PAGE, userspaceAddr: SLOT_HVA });
    expect(vm.vcpus[0].rmpFault({ gpa: 0x1000 * PAGE })).toBe('no-slot');
    expect(vm.stats().rmp_faults_ignored).toBe(2);
  });

  test('a fault on a page that guest_memfd does not give is ignored', () => {
    const { vm, file } = makeSnp({ npages: 16 });
    file.memoryError(3);
    expect(vm.vcpus[0].rmpFault({ gpa: 3 * PAGE })).toBe('no-page');
    file.close();
    expect(vm.vcpus[0].rmpFault({ gpa: 4 * PAGE })).toBe('no-page');
  });

  test('a fault on a page that was never used allocates and assigns it, and is spurious then', () => {
    const { vm } = makeSnp({ npages: 16 });
    expect(vm.vcpus[0].rmpFault({ gpa: 5 * PAGE })).toBe('spurious');
    expect(vm.rmp(5 * PAGE)).toMatchObject({ assigned: true, level: 1 });
    expect(vm.stats()).toMatchObject({ rmp_faults_spurious: 1, rmp_updates_private_4k: 1 });
  });

  test('a fault on a 2M entry splits it and zaps the 512 gfns from there on, not from its start', () => {
    const { vm } = makeSnp({ npages: 3 * BLOCK, folioSize: '2M' });
    touch(vm, 0, 3 * BLOCK);
    vm.trace();
    const moved = countersMoved(vm, () => vm.vcpus[0].rmpFault({ gpa: 100 * PAGE }));
    // [100, 612) meets two leaves: both go whole.
    expect(moved).toMatchObject({
      PSMASH: 1,
      rmp_faults_psmash: 1,
      leafs_zapped_direct_2m: 2,
      gfns_zapped_outside_request: 512,
      remote_tlb_flush_requests: 1,
      invalidations: 1,
    });
    expect(leavesOf(vm)).toEqual(['1024..1535 2M']);
    expect(vm.trace().at(-1)).toEqual({ name: 'kvm_rmp_fault', vcpu: 0, gfn: 100, page: 100, level: 2 });
    // The next block is still a 2M entry, and mapped so again.
    touch(vm, BLOCK);
    expect(leavesOf(vm)).toEqual(['512..1535 2M']);
    expect(vm.vcpus[0].rmpFault({ gpa: 100 * PAGE })).toBe('spurious');
    expect(vm.check()).toEqual([]);
  });

  test('an access through a 4K leaf over a 2M entry takes one by itself', () => {
    const { vm } = makeSnp({ npages: BLOCK, folioSize: '2M', kernel: 'linux-6.16' });
    touch(vm, 0, BLOCK);
    convert(vm, 511, 512, 0);
    expect(leavesOf(vm)).toEqual([]);
    const moved = countersMoved(vm, () => expect(touch(vm, 0, 511).reason).toBe('done'));
    // 511 faults map 4K leaves, one more maps the leaf that the PSMASH zapped, one finds nothing to do.
    expect(moved).toMatchObject({ PSMASH: 1, rmp_faults_psmash: 1, pf_fixed: 512, pf_spurious: 1, pf_taken: 513 });
    expect(leavesOf(vm)).toEqual(['0..510 4K']);
  });

  test('on another VM there are none', () => {
    const { vm } = makeSnp({ type: 'sw-protected', npages: 16 });
    expect(refusalOf(vm, () => vm.vcpus[0].rmpFault({ gpa: 0 }))).toBe('EINVAL');
  });
});

describe('PVALIDATE', () => {
  test('validates, says what was so before, and rescinds', () => {
    const snp = makeSnp({ npages: 64 });
    const [vcpu] = snp.vm.vcpus;
    const moved = countersMoved(snp.vm, () => {
      expect(vcpu.pvalidate({ gpa: 0, size: 40 * PAGE })).toEqual({
        reason: 'done',
        gpa: 40n * 4096n,
        changed: 40,
        unchanged: 0,
      });
    });
    expect(moved).toMatchObject({ pf_taken: 40, pf_fixed: 40, pages_validated: 40, rmp_updates_private_4k: 40 });
    expect(vcpu.pvalidate({ gpa: 30 * PAGE, size: 20 * PAGE })).toMatchObject({ changed: 10, unchanged: 10 });
    expect(vcpu.pvalidate({ gpa: 5 * PAGE, size: PAGE, validate: false })).toMatchObject({ changed: 1 });
    expect(rmpOf(snp)).toEqual(['0..4 4K v @0x0', '5..5 4K @0x5', '6..49 4K v @0x6']);
  });

  test('of 2M needs a 2M entry and a 2M mapping', () => {
    const small = makeSnp({ npages: BLOCK });
    const mismatch = { reason: 'size-mismatch', gpa: 0n, changed: 0, unchanged: 0 };
    expect(small.vm.vcpus[0].pvalidate({ gpa: 0, size: MIB2, pageSize: '2M' })).toEqual(mismatch);
    const huge = makeSnp({ npages: 2 * BLOCK, folioSize: '2M' });
    const all = { gpa: 0, size: 2 * MIB2, pageSize: '2M' as const };
    expect(huge.vm.vcpus[0].pvalidate(all)).toMatchObject({ reason: 'done', changed: 1024 });
    punch(huge.file, BLOCK + 1);
    expect(huge.vm.vcpus[0].pvalidate(all)).toMatchObject({
      reason: 'size-mismatch',
      gpa: BigInt(MIB2),
      unchanged: 512,
    });
  });

  test('of 4K inside a 2M entry splits it by an RMP fault', () => {
    const snp = makeSnp({ npages: BLOCK, folioSize: '2M' });
    const moved = countersMoved(snp.vm, () => snp.vm.vcpus[0].pvalidate({ gpa: 9 * PAGE, size: PAGE }));
    expect(moved).toMatchObject({ PSMASH: 1, rmp_faults_psmash: 1, pf_fixed: 2, pf_spurious: 1, pages_validated: 1 });
    expect(rmpOf(snp)).toEqual(['0..8 4K @0x0', '9..9 4K v @0x9', '10..511 4K @0xa']);
  });

  // npf_interception() hands the fault to the MMU before sev_handle_rmp_fault() sees it.
  test('of 4K in a 2M leaf of what is mixed now has the leaf split before the RMP fault zaps from the gfn on', () => {
    const { vm } = makeSnp({ npages: BLOCK, folioSize: '2M', kernel: 'rfc-v4' });
    touch(vm, 0);
    convert(vm, 0, 1, 0);
    expect(leavesOf(vm)).toEqual(['0..511 2M']);
    const moved = countersMoved(vm, () => vm.vcpus[0].pvalidate({ gpa: 9 * PAGE, size: PAGE }));
    expect(moved).toMatchObject({ splits: 1, PSMASH: 1, leafs_zapped_direct_4k: BLOCK - 9 });
    expect(leavesOf(vm)).toEqual(['0..9 4K']);
  });

  test('of a gfn that is shared exits to userspace', () => {
    const { vm } = makeSnp({ npages: 16 });
    convert(vm, 4, 16, 0);
    expect(vm.vcpus[0].pvalidate({ gpa: 0, size: 16 * PAGE })).toEqual({
      reason: 'memory_fault',
      gpa: 4n * 4096n,
      changed: 4,
      unchanged: 0,
      errno: 'EFAULT',
    });
  });

  test('of a page that is assigned as another gpa never ends', () => {
    const snp = makeSnp({ npages: 16, slotPages: 8 });
    touch(snp.vm, 0, 8);
    snp.bindAt(0x100, 8);
    convert(snp.vm, 0x100, 0x108, PRIVATE);
    expect(snp.vm.vcpus[0].pvalidate({ gpa: 0x100 * PAGE, size: PAGE }).reason).toBe('retry');
    expect(snp.vm.check().map(({ kind }) => kind)).toEqual(['rmp-disagrees']);
  });

  test('maps what it gets to, and nothing behind where it stops', () => {
    const snp = makeSnp({ npages: 16, slotPages: 8 });
    touch(snp.vm, 3, 2);
    snp.bindAt(0x100, 8);
    convert(snp.vm, 0x100, 0x108, PRIVATE);
    const moved = countersMoved(snp.vm, () => {
      expect(snp.vm.vcpus[0].pvalidate({ gpa: 0x100 * PAGE, size: 8 * PAGE })).toMatchObject({
        reason: 'retry',
        gpa: 0x103n * 4096n,
        changed: 3,
      });
    });
    expect(moved).toMatchObject({ pf_fixed: 4, pages_4k: 4, pages_validated: 3, rmp_updates_private_4k: 3 });
  });
});

describe('rmpChecks: an access meets the whole RMP entry', () => {
  test('touching a private page that is not validated is the guest’s own exception', () => {
    const { vm } = makeSnp({ npages: 16, rmpChecks: true });
    expect(touch(vm, 3)).toMatchObject({ reason: 'vc', gpa: 3n * 4096n, done: 0 });
    vm.vcpus[0].pvalidate({ gpa: 0, size: 10 * PAGE });
    expect(touch(vm, 0, 16)).toMatchObject({ reason: 'vc', gpa: 10n * 4096n, done: 10 });
    vm.vcpus[0].pvalidate({ gpa: 2 * PAGE, size: PAGE, validate: false });
    expect(touch(vm, 0, 10)).toMatchObject({ reason: 'vc', done: 2 });
  });

  test('a page assigned as another gpa faults again and again', () => {
    const snp = makeSnp({ npages: 16, slotPages: 8, rmpChecks: true });
    snp.vm.vcpus[0].pvalidate({ gpa: 0, size: 8 * PAGE });
    snp.bindAt(0x100, 8);
    convert(snp.vm, 0x100, 0x108, PRIVATE);
    expect(touch(snp.vm, 0x100).reason).toBe('retry');
    expect(snp.vm.stats().rmp_faults_spurious).toBeGreaterThan(0);
  });
});

describe('page-state changes by MSR', () => {
  test('exit for one page, and answer the guest', () => {
    const { vm } = makeSnp({ npages: 16, hypercalls: true });
    const exit = vm.vcpus[0].pageStateChange({ protocol: 'msr', gpa: 5 * PAGE, operation: 'shared' });
    expect(exit).toEqual({ reason: 'hypercall', gpa: 5n * 4096n, npages: 1, private: false, pageSize: '4K' });
    expect(vm.attributesOf(5)).toBe(PRIVATE);
    expect(vm.vcpus[0].completePageStateChange()).toMatchObject({ reason: 'done', response: 'ok' });
    expect(vm.stats().exits_hypercall).toBe(1);
  });
  test.each(['psmash', 'unsmash'] as const)('%s is answered with an error, without an exit', (operation) => {
    const { vm } = makeSnp({ npages: 16, hypercalls: true });
    expect(vm.vcpus[0].pageStateChange({ protocol: 'msr', gpa: 0, operation })).toMatchObject({
      response: 'MSR_ERROR',
    });
    expect(vm.stats().exits_hypercall).toBe(0);
  });
  test('userspace refuses: the guest gets an error', () => {
    const { vm } = makeSnp({ npages: 16, hypercalls: true });
    vm.vcpus[0].pageStateChange({ protocol: 'msr', gpa: 0, operation: 'shared' });
    expect(vm.vcpus[0].completePageStateChange(1)).toMatchObject({ response: 'MSR_ERROR' });
  });
  test('without KVM_CAP_EXIT_HYPERCALL there is only the error', () => {
    const { vm } = makeSnp({ npages: 16 });
    expect(vm.vcpus[0].pageStateChange({ protocol: 'msr', gpa: 0, operation: 'private' })).toMatchObject({
      response: 'MSR_ERROR',
    });
  });
});

describe('page-state changes by the GHCB’s buffer', () => {
  const entry = (gfn: number, pageSize: '4K' | '2M' = '4K', operation: 'private' | 'shared' = 'private', curPage = 0) =>
    ({ gpa: gfn * PAGE, pageSize, operation, curPage }) satisfies PageStateEntry;
  /** The exits as text, all answered with `ret`, and the response behind them. */
  function exitsOf(
    entries: PageStateEntry[],
    header: { curEntry?: number; endEntry?: number } = {},
    ret = 0,
  ): string[] {
    const { vm } = makeSnp({ npages: 16, hypercalls: true });
    const { exits, response, curEntry } = vm.vcpus[0].pageStateChange(
      { protocol: 'ghcb', entries, ...header },
      () => ret,
    );
    const shown = (exits ?? []).map(
      ({ gpa, npages, private: isPrivate, pageSize }) =>
        `${isPrivate ? 'private' : 'shared'} ${gpa / 4096n}+${npages} ${pageSize}`,
    );
    return [...shown, `${response} at ${curEntry}`];
  }

  test.each<[string, PageStateEntry[], { curEntry?: number; endEntry?: number }, string[]]>([
    ['adjacent entries are one exit', [entry(4), entry(5), entry(6)], {}, ['private 4+3 4K', 'ok at 3']],
    ['2M entries too', [entry(0, '2M'), entry(512, '2M')], {}, ['private 0+1024 2M', 'ok at 2']],
    ['a gap ends a range', [entry(4), entry(6)], {}, ['private 4+1 4K', 'private 6+1 4K', 'ok at 2']],
    ['so does a step back', [entry(5), entry(4)], {}, ['private 5+1 4K', 'private 4+1 4K', 'ok at 2']],
    [
      'so does another operation',
      [entry(4), entry(5, '4K', 'shared')],
      {},
      ['private 4+1 4K', 'shared 5+1 4K', 'ok at 2'],
    ],
    [
      'so does another page size',
      [entry(511), entry(512, '2M'), entry(1024)],
      {},
      ['private 511+1 4K', 'private 512+512 2M', 'private 1024+1 4K', 'ok at 3'],
    ],
    [
      'a 2M entry that is partly done goes on as 4K pages, by itself',
      [entry(0, '2M', 'private', 5), entry(512)],
      {},
      ['private 5+507 4K', 'private 512+1 4K', 'ok at 2'],
    ],
    [
      'a partly done entry does not join the one before it',
      [entry(0, '2M'), entry(512, '2M', 'private', 5)],
      {},
      ['private 0+512 2M', 'private 517+507 4K', 'ok at 2'],
    ],
    [
      'entries that are done are passed over',
      [entry(4, '4K', 'private', 1), entry(0, '2M', 'private', 512), entry(9)],
      {},
      ['private 9+1 4K', 'ok at 3'],
    ],
    ['the header says where to begin', [entry(4), entry(5), entry(6)], { curEntry: 2 }, ['private 6+1 4K', 'ok at 3']],
    ['and where to end', [entry(4), entry(5), entry(6)], { endEntry: 1 }, ['private 4+2 4K', 'ok at 2']],
    ['a first entry behind the last is nothing to do', [entry(4)], { curEntry: 1, endEntry: 0 }, ['ok at 1']],
    ['other operations count as done', [{ gpa: 0, operation: 'psmash' }, entry(4)], {}, ['private 4+1 4K', 'ok at 2']],
    ['an end of 253 or more is no header', [entry(4)], { endEntry: 253 }, ['INVALID_HDR at 0']],
    ['a 2M entry must be aligned', [entry(4), entry(7, '2M')], {}, ['private 4+1 4K', 'INVALID_ENTRY at 1']],
    ['no 4K entry has two pages', [entry(4, '4K', 'private', 2)], {}, ['INVALID_ENTRY at 0']],
    ['no 2M entry has 513', [entry(0, '2M', 'private', 513)], {}, ['INVALID_ENTRY at 0']],
  ])('%s', (_, entries, header, expected) => {
    expect(exitsOf(entries, header)).toEqual(expected);
  });

  test('userspace refuses: GENERIC, and what was done before stays done', () => {
    expect(exitsOf([entry(4), entry(6)], {}, 1)).toEqual(['private 4+1 4K', 'GENERIC at 0']);
  });

  test('without KVM_CAP_EXIT_HYPERCALL the answer is GENERIC', () => {
    const { vm } = makeSnp({ npages: 16 });
    expect(vm.vcpus[0].pageStateChange({ protocol: 'ghcb', entries: [entry(0)] })).toMatchObject({
      response: 'GENERIC',
    });
  });

  test('while userspace works the vCPU does not run, and a snapshot holds what is in flight', () => {
    const { vm } = makeSnp({ npages: 16, hypercalls: true });
    const [vcpu] = vm.vcpus;
    vcpu.pageStateChange({ protocol: 'ghcb', entries: [entry(4), entry(6), entry(8)] });
    vcpu.completePageStateChange();
    const snapshot = vm.snapshot();
    expect(touch(vm, 0)).toMatchObject({ reason: 'error', errno: 'EBUSY' });
    expect(() => vcpu.pageStateChange({ protocol: 'msr', gpa: 0, operation: 'private' })).toThrow(/EBUSY: its last/);
    const rest = () => {
      const exits = [];
      let exit = vcpu.completePageStateChange();
      while (exit.reason === 'hypercall') {
        exits.push(exit.gpa / 4096n);
        exit = vcpu.completePageStateChange();
      }
      return [...exits, exit.response];
    };
    expect(rest()).toEqual([8n, 'ok']);
    vm.restore(snapshot);
    expect(rest()).toEqual([8n, 'ok']);
    expect(refusalOf(vm, () => vcpu.completePageStateChange())).toBe('EINVAL');
  });

  test('a terabyte of 2M entries is two thousand buffers', () => {
    const { vm } = makeSnp({ npages: 16, hypercalls: true });
    let exits = 0;
    for (let at = 0; at < 2 ** 19; at += 253) {
      const count = Math.min(253, 2 ** 19 - at);
      const entries = Array.from({ length: count }, (_, k) => entry((at + k) * BLOCK, '2M'));
      vm.vcpus[0].pageStateChange({ protocol: 'ghcb', entries }, ({ npages }) => {
        expect(npages).toBe(count * BLOCK);
        exits++;
        return 0;
      });
    }
    expect(exits).toBe(Math.ceil(2 ** 19 / 253));
  });
});

describe('what makes no sense is refused', () => {
  const vm = makeSnp({ npages: 1024, folioSize: '2M', hypercalls: true }).vm;
  const [vcpu] = vm.vcpus;
  const change = (args: unknown) => () => vcpu.pageStateChange(args as never);
  test.each<[string, () => unknown, RegExp]>([
    ['no change', change(undefined), /change is undefined: it must be an object/],
    ['a protocol', change({ protocol: 'vmcall' }), /protocol is "vmcall": it must be one of msr, ghcb/],
    ['an operation', change({ protocol: 'msr', gpa: 0, operation: 'mixed' }), /operation is "mixed"/],
    ['a gpa', change({ protocol: 'msr', gpa: 12, operation: 'shared' }), /gpa is 0xc: it must be a multiple of 4096/],
    ['no entries', change({ protocol: 'ghcb', entries: [] }), /entries has 0 entries: the buffer holds 1 to 253/],
    [
      '254 entries',
      change({ protocol: 'ghcb', entries: Array.from({ length: 254 }, () => ({ gpa: 0, operation: 'shared' })) }),
      /entries has 254 entries/,
    ],
    [
      'cur_page',
      change({ protocol: 'ghcb', entries: [{ gpa: 0, operation: 'shared', curPage: 4096 }] }),
      /entries\[0\]\.curPage is 4096: it must be within 0 and 4095/,
    ],
    [
      'cur_entry',
      change({ protocol: 'ghcb', entries: [{ gpa: 0, operation: 'shared' }], curEntry: -1 }),
      /curEntry is -1/,
    ],
    [
      'an answer',
      () => vcpu.pageStateChange({ protocol: 'msr', gpa: 0, operation: 'shared' }, 1 as never),
      /answer is 1/,
    ],
    ['a ret', () => vcpu.completePageStateChange('no' as never), /ret is no: it must be a number/],
    ['a gpa of rmpFault', () => vcpu.rmpFault({ gpa: -1 }), /gpa is -1/],
    ['a page size', () => vcpu.pvalidate({ gpa: 0, size: PAGE, pageSize: '1G' as never }), /pageSize is "1G"/],
    ['half a page', () => vcpu.pvalidate({ gpa: 0, size: 100 }), /size is 100: it must be a multiple of 4096/],
    ['2M that is not aligned', () => vcpu.pvalidate({ gpa: PAGE, size: MIB2, pageSize: '2M' }), /EINVAL/],
    ['nothing to validate', () => vcpu.pvalidate({ gpa: 0, size: 0 }), /EINVAL/],
    ['a folio size', () => vm.createGuestMemfd({ size: PAGE, folioSize: '1G' as never }), /folioSize is "1G"/],
    ['a page of no file', () => vm.guestMemfds[0].rmp(1024), /EINVAL/],
    ['an index', () => vm.guestMemfds[0].rmp(-1), /pageIndex is -1/],
    ['rmpChecks', () => createVmSync({ memory: PAGE, rmpChecks: 1 as never }), /rmpChecks is 1/],
  ])('%s', (_, call, message) => {
    const before = vm.snapshot();
    expect(call).toThrow(message);
    expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
  });

  test('KVM_CAP_EXIT_HYPERCALL knows one hypercall', () => {
    expect(refusalOf(vm, () => vm.enableCap({ cap: 201, args: [1] }))).toBe('EINVAL');
    expect(refusalOf(vm, () => vm.enableCap({ cap: 201, args: [1 << 12] }))).toBe('none');
  });

  test('rmp() of what no guest_memfd backs is undefined', () => {
    expect(vm.rmp(2 ** 40)).toBeUndefined();
    expect(vm.rmp(0)).toEqual({ assigned: false });
  });
});

describe('all of it is in the VM’s memory', () => {
  test('a restored VM has the RMP that it had', () => {
    const snp = makeSnp({ npages: 3 * BLOCK, folioSize: '2M' });
    const { vm, file } = snp;
    vm.vcpus[0].pvalidate({ gpa: 0, size: MIB2, pageSize: '2M' });
    touch(vm, 0, 3 * BLOCK);
    punch(file, 700);
    const before = rmpOf(snp);
    const snapshot = vm.snapshot();
    file.close();
    vm.restore(snapshot);
    expect(rmpOf(snp)).toEqual(before);
    expect(vm.check()).toEqual([]);
  });

  test('one placement more than the RMP remembers of a file is refused before anything changes', () => {
    const snp = makeSnp({ npages: 64, slotPages: 1 });
    const { vm } = snp;
    for (let at = 0; at < 32; at++) {
      snp.bindAt(0x1000 + 2 * at, 1, at);
      convert(vm, 0x1000 + 2 * at, 0x1001 + 2 * at, PRIVATE);
      expect(touch(vm, 0x1000 + 2 * at).reason).toBe('done');
    }
    snp.bindAt(0x2000, 1, 40);
    convert(vm, 0x2000, 0x2001, PRIVATE);
    expect(touch(vm, 0x2000)).toMatchObject({ reason: 'memory_fault', errno: 'ENOMEM' });
    expect(snp.file.rmp(40)).toEqual({ assigned: false });
    // A placement that no page has any more makes room.
    punch(snp.file, 3);
    expect(touch(vm, 0x2000).reason).toBe('done');
    expect(snp.file.rmp(40)).toMatchObject({ gpa: 0x2000n * 4096n });
    expect(snp.file.rmp(31)).toMatchObject({ gpa: BigInt(0x1000 + 62) * 4096n });
  });

  test.each<[string, (snp: SnpVm) => unknown]>([
    ['a hole', ({ file }) => punch(file, 100, 1000)],
    ['a close', ({ file }) => file.close()],
    ['an allocation', ({ file }) => file.allocate(5 * PAGE, 1000 * PAGE)],
    ['a memory error', ({ file }) => file.memoryError(100)],
    ['a first use', ({ vm }) => touch(vm, 1100)],
    ['an RMP fault', ({ vm }) => vm.vcpus[0].rmpFault({ gpa: 0 })],
    ['a validation', ({ vm }) => vm.vcpus[0].pvalidate({ gpa: 1100 * PAGE, size: PAGE })],
  ])('%s that finds no memory is refused before its first change', (_, call) => {
    const snp = makeSnp({ npages: 3 * BLOCK, folioSize: '2M' });
    touch(snp.vm, 0, 900);
    expect(guarded(snp.vm, () => call(snp))).toBe('ENOMEM, nothing changed');
    call(snp);
    expect(snp.vm.check()).toEqual([]);
  });

  test('pieces of a hole equal one run', () => {
    const whole = makeSnp({ npages: 4 * BLOCK, folioSize: '2M' });
    touch(whole.vm, 0, 4 * BLOCK);
    const snapshot = whole.vm.snapshot();
    punch(whole.file, 100, 1700);
    const expected = whole.vm.snapshot();
    whole.vm.restore(snapshot);
    const pieces = whole.vm.steps({ budget: 2, stopAt: ['gmem-zapped'] }, () => punch(whole.file, 100, 1700));
    let count = 0;
    while (!pieces.next().done) count++;
    expect(count).toBeGreaterThan(1);
    expect(Buffer.compare(whole.vm.snapshot(), expected)).toBe(0);
  });
});
