// Rules of the TDP MMU (R-MMU-*): what a zap takes, when it yields and flushes, at which level a fault maps, what frees tables.
//
// R-MMU-4's leaf in an invalid root cannot be placed by calls, as such a root is zapped before anything else runs: it is
// written into a snapshot.

import { describe, expect, test } from 'vitest';
import type { CreateVmOptions, KernelProfile, Vm, VmType } from '../../src/index.ts';
import type { AnyEvent } from '../support/events.ts';
import { checkInvariants } from '../support/invariants.ts';
import { expectTrace, makeVm, PAGE, type VmSpec } from '../support/make-vm.ts';
import { counted, countersMoved, eventsOf, hvaOfSlot, leafCounts, leavesOf } from '../support/observe.ts';

const M2 = 512;
const G1 = 262_144;
const PRIVATE = 8;
const HVA = hvaOfSlot(0);

const write = (vm: Vm, gfn: number, count = 1) =>
  vm.vcpus[0].access({ gpa: gfn * PAGE, kind: 'write', private: false, count });
const set = (vm: Vm, start: number, end: number, attributes: number) =>
  vm.setMemoryAttributes({ address: start * PAGE, size: (end - start) * PAGE, attributes });
const pages = (first: number, count: number) => ({ hva: HVA + first * PAGE, length: count * PAGE });

describe('range zaps', () => {
  // arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_zap_leafs()
  test.each<[string, 'thp' | 'hugetlb2m' | 'hugetlb1g', number, number, string[]]>([
    ['first under a 2M leaf, removes all 512', 'thp', M2, M2, ['0..511 2M', '1024..1535 2M']],
    ['last under a 2M leaf, removes all 512', 'hugetlb2m', 2 * M2 - 1, M2, ['0..511 2M', '1024..1535 2M']],
    ['somewhere under a 1G leaf, removes 262144', 'hugetlb1g', 12_345, G1, [`${G1}..${2 * G1 - 1} 1G`]],
  ])('R-MMU-1 zapping one gfn, %s', (_, kind, gfn, gone, left) => {
    const npages = kind === 'hugetlb1g' ? 2 * G1 : 3 * M2;
    const vm = makeVm({ slots: [{ startGfn: 0, npages, kind }] });
    for (let at = 0; at < npages; at += gone) write(vm, at);
    const moved = countersMoved(vm, () => vm.unmapGfnRange({ slot: 0, start: gfn, end: gfn + 1 }));
    expect(leavesOf(vm)).toEqual(left);
    expect(moved).toMatchObject({ gfns_zapped: gone, gfns_zapped_outside_request: gone - 1 });
    expect(moved[gone === G1 ? 'leafs_zapped_direct_1g' : 'leafs_zapped_direct_2m']).toBe(1);
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_zap_leafs()
  test.each<
    [string, (vm: Vm & { slotFiles: readonly ({ punchHole(a: number, b: number): void } | undefined)[] }) => void]
  >([
    ['notifier', (vm) => vm.host.munmap(pages(0, 1024))],
    ['guest_memfd punch', (vm) => vm.slotFiles[0]?.punchHole(0, 1024 * PAGE)],
    ['to private', (vm) => set(vm, 0, 1024, PRIVATE)],
    ['to shared', (vm) => set(vm, 0, 1024, 0)],
    ['slot delete', (vm) => vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: HVA })],
    ['zap_gfn_range', (vm) => vm.zapGfnRange(0, 1024)],
  ])('R-MMU-2 a range zap never reduces the page-table count: %s', (_, zap) => {
    for (const type of ['tdx', 'sw-protected'] as VmType[]) {
      const vm = makeVm({
        type,
        slots: [{ startGfn: 0, npages: 1024, guestMemfd: true }],
        mapped: [0, 1, 513],
        mappedPrivate: [2, 514],
      });
      const { tables } = vm.stats();
      const moved = countersMoved(vm, () => zap(vm));
      expect(moved.gfns_zapped).toBeGreaterThan(0);
      expect(moved.tables_freed).toBeUndefined();
      expect(vm.stats().tables).toBe(tables);
    }
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_zap_leafs()
  test.each<VmType>(['default', 'tdx', 'snp', 'sw-protected'])(
    'R-MMU-13 a second identical range zap asks for no flush (%s)',
    (type) => {
      const vm = makeVm({
        type,
        slots: [{ startGfn: 0, npages: 16, guestMemfd: type !== 'default' }],
        mapped: [0, 1, 2],
        mappedPrivate: type === 'default' ? [] : [8, 9],
      });
      const all = { slot: 0, start: 0, end: 16, onlyPrivate: true, onlyShared: true };
      expect(vm.unmapGfnRange(all)).toBe(true);
      expect(leafCounts(vm)).toEqual([0, 0, 0]);
      expect(vm.unmapGfnRange(all)).toBe(false);
    },
  );
});

describe('yields and flushes', () => {
  const YIELDS = ['yields', 'remote_tlb_flush_requests', 'gfns_zapped'] as const;
  const makeMapped = (from: number, count: number) => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 2048 }] });
    write(vm, from, count);
    vm.trace();
    return vm;
  };
  const start = (vm: Vm, blockable = true) => vm.host.invalidateRangeStart({ ...pages(0, 2048), blockable });

  // arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_iter_cond_resched()
  test('R-MMU-3 may_block=false never yields', () => {
    const vm = makeMapped(0, 2048);
    vm.yieldAt(1024);
    expect(counted(vm, YIELDS, () => start(vm, false))).toEqual({
      yields: 0,
      remote_tlb_flush_requests: 1,
      gfns_zapped: 2048,
    });
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_iter_cond_resched()
  test('R-MMU-3 may_block=true yields, and flushes what it zapped first', () => {
    const vm = makeMapped(1022, 4);
    vm.yieldAt(1024);
    expect(counted(vm, YIELDS, () => start(vm))).toEqual({
      yields: 1,
      remote_tlb_flush_requests: 2,
      gfns_zapped: 4,
    });
    expectTrace(vm, [
      'begin',
      'add [0x0, 0x800)',
      'unmap slot 0 [0x0, 0x800)',
      'zap 0x3fe 4K',
      'zap 0x3ff 4K',
      'flush',
      'zap 0x400 4K',
      'zap 0x401 4K',
      'flush',
    ]);
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_zap_leafs()
  test('R-MMU-3 what was flushed at a yield asks for no flush at the end', () => {
    const vm = makeMapped(0, 16);
    vm.yieldAt(1024);
    expect(counted(vm, YIELDS, () => start(vm))).toEqual({ yields: 1, remote_tlb_flush_requests: 1, gfns_zapped: 16 });
    expect(eventsOf(vm, 'unmap_gfn_range_ret', 'flush').map(({ name, ret }) => ret ?? name)).toEqual(['flush', false]);
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_iter_cond_resched()
  test('R-MMU-3 a yield with nothing zapped before flushes nothing', () => {
    const vm = makeMapped(1500, 16);
    vm.yieldAt(600);
    expect(counted(vm, YIELDS, () => start(vm))).toEqual({ yields: 1, remote_tlb_flush_requests: 1, gfns_zapped: 16 });
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_iter_cond_resched(): next_last_level_gfn != yielded_gfn
  test('R-MMU-3 without forward progress there is no yield', () => {
    const vm = makeMapped(0, 2048);
    vm.yieldAt(0);
    expect(counted(vm, YIELDS, () => start(vm)).yields).toBe(0);
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_iter_cond_resched(), tdp_iter_restart()
  test('R-MMU-3 a yield walks down from the root again', () => {
    const visits = (yieldAt: number | null) => {
      const vm = makeMapped(0, 2048);
      if (yieldAt !== null) vm.yieldAt(yieldAt);
      return countersMoved(vm, () => start(vm)).entries_visited;
    };
    // Five levels: the walk comes to the entry of gfn 1024 by the entries of levels 5 to 2 again.
    expect(visits(1024) - visits(null)).toBe(5);
  });

  /** kvm_flush_remote_tlbs_range() is a flush of all on bare metal. */
  const RANGED = ['flush_range', 'flush'];
  // arch/x86/kvm/mmu/tdp_mmu.c: recover_huge_pages_range() (6.16), zap_collapsible_spte_range() (6.12)
  test.each<[KernelProfile, number | null, string[]]>([
    ['linux-6.16', null, ['leaf 0', 'leaf 512', 'leaf 1024', 'leaf 1536', ...RANGED]],
    ['linux-6.16', 1100, ['leaf 0', 'leaf 512', 'flush', 'leaf 1024', 'leaf 1536', ...RANGED]],
    // The yield comes before the first table, and after the last.
    ['linux-6.16', 3, ['leaf 0', 'leaf 512', 'leaf 1024', 'leaf 1536', ...RANGED]],
    ['linux-6.16', 2100, ['leaf 0', 'leaf 512', 'leaf 1024', 'leaf 1536', 'flush']],
    // Here each table is zapped and flushed by itself: a yield owes nothing.
    ['linux-6.12', 1100, [0, 512, 1024, 1536].flatMap((gfn) => [...RANGED, `nonpresent ${gfn}`])],
  ])('R-MMU-3 under %s, recovering huge pages, with a yield at %s', (kernel, gfn, expected) => {
    const vm = makeVm({ kernel, slots: [{ startGfn: 0, npages: 2560, kind: 'thp', flags: 1 }] });
    for (const at of [0, 512, 1024, 1536]) write(vm, at, 1);
    vm.trace();
    if (gfn !== null) vm.yieldAt(gfn);
    const region = { slot: 0, guestPhysAddr: 0, memorySize: 2560 * PAGE, userspaceAddr: hvaOfSlot(0) };
    const { yields } = counted(vm, ['yields'], () => vm.setUserMemoryRegion({ ...region, flags: 0 }));
    expect(yields).toBe(gfn === null || gfn < 512 ? 0 : 1);
    const seen = eventsOf(vm, 'spte_changed', 'flush', 'flush_range').flatMap((event) => {
      if (event.name !== 'spte_changed') return [event.name];
      return event.level === 2 ? [`${(event.new as { class: string }).class} ${event.gfn}`] : [];
    });
    expect(seen).toEqual(expected);
    expect(vm.check()).toEqual([]);
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: recover_huge_pages_range()
  test('R-MMU-3 a yield below a 1G table that gives way is passed by, and waits for the next walk', () => {
    const vm = makeVm({ kernel: 'linux-6.16', slots: [{ startGfn: 0, npages: 3 * G1, kind: 'hugetlb1g', flags: 1 }] });
    for (const at of [0, G1, 2 * G1]) write(vm, at + 700);
    vm.trace();
    vm.yieldAt(G1 + 600);
    const region = { slot: 0, guestPhysAddr: 0, memorySize: 3 * G1 * PAGE, userspaceAddr: HVA };
    const recover = () => vm.setUserMemoryRegion({ ...region, flags: 0 });
    expect(counted(vm, YIELDS, recover)).toEqual({ yields: 0, remote_tlb_flush_requests: 1, gfns_zapped: 3 });
    expect(leavesOf(vm)).toEqual([`0..${3 * G1 - 1} 1G`]);
    const zap = () => vm.host.invalidateRangeStart(pages(0, 3 * G1));
    expect(counted(vm, YIELDS, zap)).toEqual({ yields: 1, remote_tlb_flush_requests: 2, gfns_zapped: 3 * G1 });
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_zap_leafs()
  test('R-MMU-4 zapping leafs of an invalid root only requests no flush', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 16 }], mapped: [0, 1] });
    restoreWithRootInvalid(vm);
    expect(leavesOf(vm)).toEqual(['0..1 4K']);
    const moved = countersMoved(vm, () => expect(vm.unmapGfnRange({ slot: 0, start: 0, end: 16 })).toBe(false));
    expect(moved).toMatchObject({ leafs_zapped_direct_4k: 2, pages_4k: -2 });
    expect(leavesOf(vm)).toEqual([]);
    expect(vm.check()).toEqual([]);
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_zap_leafs()
  test('R-MMU-4 an obsolete root that is still loaded is walked, and requests no flush', () => {
    const vm = makeVm({
      vcpus: 2,
      slots: [
        { startGfn: 0, npages: 16 },
        { startGfn: 16, npages: 16 },
      ],
      mapped: [0, 1],
    });
    vm.vcpus[1].run();
    // A zap-all obsoletes the root; it stays listed until no vCPU has it loaded.
    vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0, memorySize: 0, userspaceAddr: hvaOfSlot(1) });
    expect(vm.rootCount).toBe(1);
    vm.trace();
    const unmap = () => {
      const moved = counted(vm, ['remote_tlb_flush_requests'], () => vm.host.munmap(pages(0, 16)));
      const walks = eventsOf(vm, 'zap_leafs', 'zap_leafs_ret');
      return { flushes: moved.remote_tlb_flush_requests, walks: walks.map(({ name, ret }) => ret ?? name) };
    };
    expect(unmap()).toEqual({ flushes: 0, walks: ['zap_leafs', false] });
    // One vCPU takes a new root, the other keeps the obsolete one: the valid one is newer and walked first.
    vm.host.mmap({ kind: 'anon4k', ...pages(0, 16) });
    write(vm, 3);
    expect(vm.rootCount).toBe(2);
    vm.trace();
    expect(unmap()).toEqual({ flushes: 1, walks: ['zap_leafs', true, 'zap_leafs', true] });
    vm.vcpus[1].run();
    expect(vm.rootCount).toBe(1);
  });
});

describe('faults', () => {
  // arch/x86/kvm/mmu/tdp_mmu.c: kvm_tdp_mmu_map(), tdp_mmu_split_huge_page()
  test('R-MMU-5 a 4K fault under a 2M leaf splits it into 512 children without a flush', () => {
    const vm = makeVm({ eagerPageSplit: false, slots: [{ startGfn: 0, npages: 1024, kind: 'thp' }], mapped: [0, 512] });
    const region = { slot: 0, flags: 1, guestPhysAddr: 0, memorySize: 1024 * PAGE, userspaceAddr: HVA };
    vm.setUserMemoryRegion(region);
    expect(leavesOf(vm)).toEqual(['0..1023 2M']);
    vm.trace();
    const moved = countersMoved(vm, () => write(vm, 5));
    expect(moved).toMatchObject({
      splits: 1,
      pages_2m: -1,
      pages_4k: 512,
      tables: 1,
      tables_allocated: 1,
      pf_fixed: 1,
    });
    expect(moved.remote_tlb_flush_requests).toBeUndefined();
    expect(leavesOf(vm)).toEqual(['0..511 4K', '512..1023 2M']);
    expectTrace(vm, ['link 0x0 2M', 'split 0x0 2M', 'change 0x5 4K']);
    const writable = vm.leafs().filter(({ spte }) => spte.writable);
    expect(writable).toMatchObject([{ gfn: 5, count: 1, level: 1 }]);
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: kvm_tdp_mmu_map(), tdp_mmu_split_huge_page()
  test('R-MMU-5 so does an exec fault where huge pages are not executable', () => {
    const vm = makeVm({ nxHugePages: true, slots: [{ startGfn: 0, npages: 512, kind: 'thp' }], mapped: [0] });
    const exec = () => vm.vcpus[0].access({ gpa: 7 * PAGE, kind: 'exec' });
    const moved = countersMoved(vm, exec);
    expect(moved).toMatchObject({ splits: 1, pages_2m: -1, pages_4k: 512, nx_lpage_splits: 1 });
    expect(moved.remote_tlb_flush_requests).toBeUndefined();
    expect(countersMoved(vm, exec)).toEqual({});
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_map_handle_target_level()
  test('R-MMU-6 a 2M install over a populated table frees it and flushes once', () => {
    const vm = makeVm({ type: 'sw-protected', slots: [{ startGfn: 0, npages: 1024, guestMemfd: true, kind: 'thp' }] });
    set(vm, 5, 6, PRIVATE);
    write(vm, 0, 5);
    write(vm, 6, 10);
    expect(leavesOf(vm)).toEqual(['0..4 4K', '6..15 4K']);
    set(vm, 5, 6, 0);
    vm.trace();
    const moved = countersMoved(vm, () => write(vm, 5));
    expect(moved).toMatchObject({ pages_2m: 1, pages_4k: -15, tables: -1, tables_freed: 1, pf_fixed: 1 });
    expect(moved.remote_tlb_flush_requests).toBe(1);
    expect(leavesOf(vm)).toEqual(['0..511 2M']);
    expect(eventsOf(vm, 'flush_range', 'flush').map(({ name, gfn, npages }) => [name, gfn, npages])).toEqual([
      ['flush_range', 0, 512],
      ['flush', undefined, undefined],
    ]);
  });

  interface LevelCase {
    because: string;
    vm: VmSpec;
    before?: (vm: Vm) => void;
    access?: 'read' | 'write' | 'exec';
    isPrivate?: boolean;
    gfn?: number;
    leaves: string[];
  }
  const thp = { startGfn: 0, npages: 2 * M2, kind: 'thp' as const };
  const LEVELS: LevelCase[] = [
    { because: 'the host maps 4K pages', vm: { slots: [{ ...thp, kind: 'anon4k' }] }, leaves: ['0..0 4K'] },
    { because: 'the host maps 2M', vm: { slots: [thp] }, leaves: ['0..511 2M'] },
    {
      because: 'the host maps 1G',
      vm: { slots: [{ startGfn: 0, npages: G1, kind: 'hugetlb1g' }] },
      gfn: 777,
      leaves: [`0..${G1 - 1} 1G`],
    },
    {
      because: 'the slot starts inside the 2M',
      vm: { slots: [{ startGfn: 256, npages: 1024, kind: 'thp' }] },
      gfn: 300,
      leaves: ['300..300 4K'],
    },
    {
      because: 'the slot holds all of the next 2M',
      vm: { slots: [{ startGfn: 256, npages: 1024, kind: 'thp' }] },
      gfn: 600,
      leaves: ['512..1023 2M'],
    },
    {
      because: 'the slot ends inside the 2M',
      vm: { slots: [{ startGfn: 0, npages: 1000, kind: 'thp' }] },
      gfn: 600,
      leaves: ['600..600 4K'],
    },
    {
      because: 'gpa and hva are not congruent modulo 2M',
      vm: { memory: 2 ** 24, slots: [] },
      before: (vm) => {
        vm.host.mmap({ kind: 'thp', hva: HVA, length: 2 ** 23 });
        vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 2 ** 22, userspaceAddr: HVA + PAGE });
      },
      gfn: 512,
      leaves: ['512..512 4K'],
    },
    { because: 'the slot is logged', vm: { slots: [{ ...thp, flags: 1 }] }, leaves: ['0..0 4K'] },
    {
      because: 'exec, and huge pages are not executable',
      vm: { nxHugePages: true, slots: [thp] },
      access: 'exec',
      leaves: ['0..0 4K'],
    },
    {
      because: 'a read may still map huge then',
      vm: { nxHugePages: true, slots: [thp] },
      access: 'read',
      leaves: ['0..511 2M'],
    },
    {
      because: 'the 2M is mixed',
      vm: { type: 'sw-protected', slots: [{ ...thp, guestMemfd: true }] },
      before: (vm) => set(vm, 100, 101, PRIVATE),
      leaves: ['0..0 4K'],
    },
    {
      because: 'another 2M is mixed',
      vm: { type: 'sw-protected', slots: [{ ...thp, guestMemfd: true }] },
      before: (vm) => set(vm, 600, 601, PRIVATE),
      leaves: ['0..511 2M'],
    },
    {
      because: 'the 1G is mixed, its first 2M is not',
      vm: { type: 'sw-protected', slots: [{ startGfn: 0, npages: G1, guestMemfd: true, kind: 'hugetlb1g' }] },
      before: (vm) => set(vm, 1000, 1001, PRIVATE),
      leaves: ['0..511 2M'],
    },
    ...(['sw-protected', 'snp', 'tdx'] as VmType[]).map((type) => ({
      because: `guest_memfd allocates 4K pages for private gfns (${type})`,
      vm: { type, slots: [{ ...thp, guestMemfd: true }] },
      before: (vm: Vm) => set(vm, 0, 1024, PRIVATE),
      isPrivate: true,
      leaves: ['0..0 4K'],
    })),
  ];
  // arch/x86/kvm/mmu/mmu.c: __kvm_mmu_max_mapping_level(), kvm_mmu_hugepage_adjust()
  test.each(LEVELS.map((row) => [row.leaves[0], row.because, row] as const))(
    'R-MMU-7 a fault maps %s: %s',
    (_, __, row) => {
      const vm = makeVm(row.vm);
      row.before?.(vm);
      const gpa = (row.gfn ?? 0) * PAGE;
      if (row.isPrivate && vm.options.type === 'tdx') vm.vcpus[0].preFaultMemory({ gpa, size: PAGE });
      else vm.vcpus[0].access({ gpa, kind: row.access ?? 'write', private: row.isPrivate ?? false });
      expect(leavesOf(vm, row.isPrivate && vm.options.type === 'tdx' ? 'mirror' : 'direct')).toEqual(row.leaves);
    },
  );

  // arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn()
  test.each<[VmType, string, boolean, number]>([
    ['tdx', 'a shared access to a private gfn', false, 2],
    ['tdx', 'a private access to a shared gfn', true, 5],
    ['snp', 'a shared access to a private gfn', false, 2],
    ['snp', 'a private access to a shared gfn', true, 5],
  ])('R-MMU-8 %s: %s exits with MEMORY_FAULT before anything is allocated', (type, _, isPrivate, gfn) => {
    const vm = makeVm({ type, slots: [{ startGfn: 0, npages: 16, guestMemfd: true }] });
    set(vm, 0, 4, PRIVATE);
    vm.vcpus[0].run();
    vm.trace();
    const moved = countersMoved(vm, () => {
      const exit = vm.vcpus[0].access({ gpa: gfn * PAGE, kind: 'write', private: isPrivate });
      expect(exit).toEqual({
        reason: 'memory_fault',
        gpa: BigInt(gfn * PAGE),
        size: 4096n,
        flags: isPrivate ? 8 : 0,
        errno: 'EFAULT',
        done: 0,
      });
    });
    const entries = type === 'tdx' ? { 'TDH.VP.ENTER': 1 } : {};
    expect(moved).toEqual({ pf_taken: 1, ...entries });
    expectTrace(vm, []);
  });

  // arch/x86/kvm/mmu/mmu.c: page_fault_can_be_fast()
  test('R-MMU-8 a private write over a write-protected shared leaf exits too: it is not for the fast path', () => {
    const vm = makeVm({ type: 'snp', slots: [{ startGfn: 0, npages: 16 }] });
    vm.vcpus[0].access({ gpa: 3 * PAGE, kind: 'write', private: false });
    const region = { slot: 0, guestPhysAddr: 0, memorySize: 16 * PAGE, userspaceAddr: hvaOfSlot(0) };
    vm.setUserMemoryRegion({ ...region, flags: 1 });
    expect(vm.leafs()).toMatchObject([{ gfn: 3, spte: { writable: false, mmuWritable: true } }]);
    const touch = (isPrivate: boolean) => {
      let reason = '';
      const moved = countersMoved(vm, () => {
        reason = vm.vcpus[0].access({ gpa: 3 * PAGE, kind: 'write', private: isPrivate }).reason;
      });
      return [reason, moved.pf_fast ?? 0];
    };
    expect(touch(true)).toEqual(['memory_fault', 0]);
    expect(touch(false)).toEqual(['done', 1]);
  });

  // arch/x86/kvm/mmu/mmu.c: kvm_handle_noslot_fault()
  test.each<VmType>(['tdx', 'snp', 'sw-protected'])(
    'R-MMU-9 a private access without a slot exits with MEMORY_FAULT and EFAULT, never MMIO (%s)',
    (type) => {
      const vm = makeVm({ type, slots: [{ startGfn: 0, npages: 16, guestMemfd: true }] });
      set(vm, 0x100, 0x101, PRIVATE);
      const access = (gfn: number, isPrivate: boolean) =>
        vm.vcpus[0].access({ gpa: gfn * PAGE, kind: 'read', private: isPrivate });
      const moved = countersMoved(vm, () => {
        expect(access(0x100, true)).toMatchObject({ reason: 'memory_fault', errno: 'EFAULT', flags: 8 });
      });
      expect(moved.pf_mmio_spte_created).toBeUndefined();
      expect(moved.tables_allocated).toBeUndefined();
      // Shared, it is MMIO.
      expect(access(0x101, false).reason).toBe('mmio');
      expect(vm.stats().pf_mmio_spte_created).toBe(1);
    },
  );

  // arch/x86/kvm/mmu/tdp_mmu.c: kvm_tdp_mmu_map(): is_frozen_spte()
  test('R-MMU-11 a FROZEN entry makes a fault retry and changes nothing', () => {
    const vm = makeVm({ type: 'tdx', vcpus: 2, slots: [{ startGfn: 0, npages: 16, guestMemfd: true }] });
    set(vm, 0, 16, PRIVATE);
    const [one, other] = vm.vcpus;
    const begin = (vcpu: typeof one, gfn: number) => vcpu.beginFault({ gpa: gfn * PAGE, kind: 'read', private: true });
    const first = begin(one, 3);
    const second = begin(other, 3);
    const beside = begin(other, 4);
    expect(one.finishFault(first)).toBe('frozen');
    expect(vm.walk(3 * PAGE).at(-1)).toMatchObject({ level: 1, gfn: 3, spte: { class: 'frozen' } });
    vm.trace();
    const names = ['retries_frozen', 'TDH.MEM.PAGE.AUG', 'pages_4k', 'tables_allocated'] as const;
    const moved = counted(vm, names, () => expect(other.finishFault(second)).toBe('retry'));
    expect(moved).toEqual({ retries_frozen: 1, 'TDH.MEM.PAGE.AUG': 0, pages_4k: 0, tables_allocated: 0 });
    expectTrace(vm, []);
    expect(vm.walk(3 * PAGE).at(-1)?.spte.class).toBe('frozen');
    // Its neighbour is free.
    expect(other.finishFault(beside)).toBe('frozen');
    expect(other.finishFault(beside)).toBe('fixed');
    expect(one.finishFault(first)).toBe('fixed');
    expectTrace(vm, ['map 0x4 4K mirror', 'map 0x3 4K mirror']);
    expect(other.finishFault(begin(other, 3))).toBe('spurious');
    expect(leavesOf(vm, 'mirror')).toEqual(['3..4 4K']);
  });
});

describe('whole trees', () => {
  const region = (id: number) => ({ slot: id, guestPhysAddr: 0, memorySize: 0, userspaceAddr: hvaOfSlot(id) });
  const makeTwo = (options: Partial<CreateVmOptions>) =>
    makeVm({
      ...options,
      slots: [
        { startGfn: 0, npages: 1024 },
        { startGfn: 1024, npages: 16 },
      ],
      mapped: [0, 1, 600, 1024, 1025],
    });

  // arch/x86/kvm/mmu/mmu.c: kvm_arch_flush_shadow_memslot()
  test('R-MMU-10 default VM, quirk on: deleting any slot empties the whole direct tree', () => {
    const vm = makeTwo({});
    const moved = countersMoved(vm, () => vm.setUserMemoryRegion(region(1)));
    expect(leafCounts(vm)).toEqual([0, 0, 0]);
    expect(vm.stats().tables).toBe(0);
    expect(moved).toMatchObject({ gfns_zapped: 5, kvm_request_free_obsolete_roots: 1 });
    expect(moved.remote_tlb_flush_requests).toBeUndefined();
    expect(vm.invalidate.seq).toBe(0);
  });

  // arch/x86/kvm/mmu/mmu.c: kvm_arch_flush_shadow_memslot(), kvm_mmu_zap_memslot()
  test.each<[string, Partial<CreateVmOptions>]>([
    ['default VM, quirk off', { quirks: { slotZapAll: false } }],
    ['SW_PROTECTED VM, quirk on', { type: 'sw-protected' }],
  ])('R-MMU-10 %s: only the slot goes, tables stay', (_, options) => {
    const vm = makeTwo(options);
    const { tables } = vm.stats();
    const moved = countersMoved(vm, () => vm.setUserMemoryRegion(region(1)));
    expect(leavesOf(vm)).toEqual(['0..1 4K', '600..600 4K']);
    expect(moved).toMatchObject({ gfns_zapped: 2, remote_tlb_flush_requests: 1 });
    expect(moved.kvm_request_free_obsolete_roots).toBeUndefined();
    expect(vm.stats().tables).toBe(tables);
  });

  // arch/x86/kvm/mmu/mmu.c: kvm_enable_cap(KVM_CAP_DISABLE_QUIRKS2)
  test('R-MMU-10 the quirk can be switched off by its capability', () => {
    const vm = makeTwo({});
    vm.enableCap({ cap: 213, args: [1 << 7] });
    vm.setUserMemoryRegion(region(1));
    expect(leavesOf(vm)).toEqual(['0..1 4K', '600..600 4K']);
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: handle_changed_spte()
  const STEPS: [string, (vm: ReturnType<typeof makeVm>) => unknown][] = [
    ['shared writes, 2M leaves', (vm) => write(vm, 0, 2048)],
    ['one gfn to private: a 2M goes', (vm) => set(vm, 700, 701, PRIVATE)],
    ['shared writes beside it, 4K leaves', (vm) => write(vm, 512, 188)],
    ['a private pre-fault', (vm) => vm.vcpus[0].preFaultMemory({ gpa: 700 * PAGE, size: PAGE })],
    ['a notifier over three 2M', (vm) => vm.host.migrate(pages(500, 1100))],
    ['shared writes again', (vm) => write(vm, 0, 700)],
    ['back to shared', (vm) => set(vm, 700, 701, 0)],
    ['a huge leaf over the table', (vm) => write(vm, 700)],
    ['to private altogether', (vm) => set(vm, 0, 1024, PRIVATE)],
    ['a pre-fault of it', (vm) => vm.vcpus[0].preFaultMemory({ gpa: 0, size: 1024 * PAGE })],
    ['a punch of some of it', (vm) => vm.slotFiles[0]?.punchHole(100 * PAGE, 500 * PAGE)],
    ['an MMIO access', (vm) => vm.vcpus[0].access({ gpa: 5000 * PAGE, kind: 'read', private: false })],
    ['slot delete', (vm) => vm.setUserMemoryRegion(region(0))],
  ];
  test.each<[VmType, Partial<CreateVmOptions>]>([
    ['tdx', {}],
    ['snp', { kernel: 'linux-6.16' }],
    ['sw-protected', { kernel: 'linux-6.12' }],
  ])('R-MMU-12 leaf counters per level equal the reachable leafs after every operation (%s)', (type, options) => {
    const vm = makeVm({ type, ...options, slots: [{ startGfn: 0, npages: 2048, guestMemfd: true, kind: 'thp' }] });
    for (const [name, step] of STEPS) {
      step(vm);
      const wrong = checkInvariants(vm).filter((finding) => finding !== null);
      expect(wrong, name).toEqual([]);
    }
    expect(leafCounts(vm)).toEqual([0, 0, 0]);
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: handle_changed_spte(): each change counts was_leaf and is_leaf
  test('R-MMU-12 the changes that the trace reports add up to the leaf counters', () => {
    const vm = makeVm({ type: 'sw-protected', slots: [{ startGfn: 0, npages: 2048, guestMemfd: true, kind: 'thp' }] });
    const byTrace = [0, 0, 0, 0, 0, 0];
    for (const [name, step] of STEPS) {
      step(vm);
      for (const event of vm.trace() as unknown as AnyEvent[]) {
        // A split reports its parent, not the 512 children that inherit.
        if (event.name === 'split_huge_page') byTrace[Number(event.level) - 1] += 512;
        if (event.name !== 'spte_changed') continue;
        const isLeaf = (spte: unknown) => (spte as { class: string }).class === 'leaf';
        byTrace[Number(event.level)] += (Number(isLeaf(event.new)) - Number(isLeaf(event.old))) * Number(event.count);
      }
      expect(leafCounts(vm), name).toEqual(byTrace.slice(1, 4));
    }
  });
});

/** Gives `vm` a snapshot of itself in which its only root is invalid, though nothing has zapped it. */
function restoreWithRootInvalid(vm: Vm): void {
  const snapshot = vm.snapshot();
  // A root's record: used, kind, address space, invalid, sequence, users, zapped.
  const record = [1, 0, 0, 0, 1, 1, 0];
  for (let at = 0; at + record.length * 4 <= snapshot.length; at += 4) {
    const words = new DataView(snapshot.buffer, at, record.length * 4);
    if (!record.every((word, index) => words.getUint32(index * 4, true) === word)) continue;
    words.setUint32(12, 1, true);
    vm.restore(snapshot);
    // No valid root is left to walk, while the tree is still there.
    if (vm.rootCount === 1 && vm.walk(0).length === 0) return;
    words.setUint32(12, 0, true);
  }
  throw new Error('found no root in the snapshot');
}
