// Rules of TDX: R-TDX-1 to R-TDX-13, and what sections 7.1 to 7.10 of the specification say beside them.

import { describe, expect, test } from 'vitest';
import {
  type CallableLeaf,
  type CreateVmOptions,
  type KernelProfile,
  KvmError,
  type LeafName,
  type TdOptions,
  type TdxStatus,
  type Vm,
} from '../../src/index.ts';
import type { AnyEvent } from '../support/events.ts';
import { makeVm, PAGE, type TestVm } from '../support/make-vm.ts';
import { counted, countersMoved, hvaOfSlot, leavesOf, refusalOf } from '../support/observe.ts';

const PRIVATE = 8;
const SHARED_BIT = 2 ** 47;
const SEAMCALLS = [
  'TDH.MEM.RANGE.BLOCK',
  'TDH.MEM.TRACK',
  'kicks',
  'TDH.MEM.PAGE.REMOVE',
  'TDH.PHYMEM.PAGE.WBINVD',
] as const;
const KERNELS: KernelProfile[] = ['rfc-v4', 'linux-6.16'];

const set = (vm: Vm, start: number, end: number, attributes: number) =>
  vm.setMemoryAttributes({ address: start * PAGE, size: (end - start) * PAGE, attributes });
const accept = (vm: Vm, start: number, end: number, level: 1 | 2 = 1) =>
  vm.vcpus[0].accept({ gpa: start * PAGE, size: (end - start) * PAGE, level });
/** KVM maps [start, end) as it would on read faults: each page is PENDING then. */
const mapPending = (vm: Vm, start: number, end: number) =>
  vm.vcpus[0].preFaultMemory({ gpa: start * PAGE, size: (end - start) * PAGE });

/** A TD whose gfns [0, npages) are private; `accepted` of them are mapped, accepted and written. */
function makeTd(npages: number, accepted: number, options: Partial<CreateVmOptions> = {}): TestVm {
  const vm = makeVm({ type: 'tdx', ...options, slots: [{ startGfn: 0, npages, guestMemfd: true, kind: 'thp' }] });
  set(vm, 0, npages, PRIVATE);
  if (accepted > 0) {
    accept(vm, 0, accepted);
    vm.vcpus[0].access({ gpa: 0, kind: 'write', count: accepted });
  }
  vm.trace();
  return vm;
}
const makeHugeTd = (npages: number, td: TdOptions = {}, options: Partial<CreateVmOptions> = {}) =>
  makeTd(npages, 0, { ...options, td: { hugePages: true, ...td } });

/** A call past KVM. */
const call = (vm: Vm, leaf: string, gfn = 0, level = 1) =>
  vm.tdx.seamcall(leaf as CallableLeaf, { gpa: gfn * PAGE, level });
/** The S-EPT's leaves as text: `0+8 PENDING`, with the level unless it is 4K. */
const septOf = (vm: Vm) =>
  vm.tdx.leafs().map(({ gfn, count, state, level }) => `${gfn}+${count} ${state}${level === 1 ? '' : ` L${level}`}`);
const disagreements = (vm: Vm) => vm.check().map(({ kind, gfn, count }) => `${kind} ${gfn}+${count}`);
const inside = (vm: Vm, ...indexes: number[]) => {
  for (const index of indexes) vm.vcpus[index].setInGuest(true);
};
const codeOf = (run: () => unknown): string => {
  try {
    run();
  } catch (error) {
    if (error instanceof KvmError) return error.code;
    throw error;
  }
  return 'none';
};
/** Calls of the module and kicks, in order: `TDH.MEM.TRACK`, with the status unless it succeeded and the times unless 1. */
const callsIn = (vm: Vm): string[] =>
  (vm.trace() as unknown as AnyEvent[]).flatMap((event) => {
    if (event.name === 'kick') return [`kick ${event.inside}`];
    if (event.name === 'sept_removed') return [`removed ${event.count}${event.tracked ? ' tracked' : ''}`];
    if (event.name !== 'seamcall') return [];
    const failed = event.status === 'TDX_SUCCESS' ? '' : ` ${event.status}`;
    return [`${event.leaf}${event.count === 1 ? '' : ` x${event.count}`}${failed}`];
  });

describe('R-TDX', () => {
  // arch/x86/kvm/vmx/tdx.c: tdx_sept_remove_private_spte()
  const REMOVERS: [string, number, (vm: TestVm) => unknown][] = [
    ['guest_memfd punch of 700', 700, (vm) => vm.slotFiles[0]?.punchHole(100 * PAGE, 700 * PAGE)],
    ['guest_memfd release', 1000, (vm) => vm.slotFiles[0]?.close()],
    ['a memory error', 1, (vm) => vm.slotFiles[0]?.memoryError(7)],
    ['conversion of 300 to shared', 300, (vm) => set(vm, 600, 900, 0)],
    [
      'slot delete',
      1000,
      (vm) => vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: hvaOfSlot(0) }),
    ],
  ];
  test.each(REMOVERS)(
    'R-TDX-1 %s: n 4K private leafs are n BLOCK, TRACK, broadcast kicks, REMOVE and WBINVD',
    (_, leafs, remove) => {
      const vm = makeTd(1000, 1000, { vcpus: 8 });
      const moved = counted(vm, [...SEAMCALLS, 'leafs_zapped_mirror_4k', 'remote_tlb_flush_requests'], () =>
        remove(vm),
      );
      for (const name of SEAMCALLS) expect(moved[name], name).toBe(leafs);
      // No batching, and one ordinary flush for the range.
      expect(moved).toMatchObject({ leafs_zapped_mirror_4k: leafs, remote_tlb_flush_requests: 1 });
      expect(vm.losses()).toMatchObject({ privatePagesLost: leafs, pagesToAccept: leafs });
    },
  );

  // arch/x86/kvm/vmx/tdx.c: tdx_sept_remove_private_spte(), once for each leaf in gfn order
  test('R-TDX-1 pages that are not mapped cost nothing, PENDING ones as much as accepted ones', () => {
    const vm = makeTd(1000, 10);
    vm.vcpus[0].preFaultMemory({ gpa: 500 * PAGE, size: 20 * PAGE });
    const moved = countersMoved(vm, () => set(vm, 0, 1000, 0));
    for (const name of SEAMCALLS) expect(moved[name], name).toBe(30);
    // Only what the guest had accepted had content.
    expect(moved).toMatchObject({ private_pages_lost: 10, private_pages_to_accept: 10 });
  });

  // The module's TDH.MEM.PAGE.AUG and TDG.MEM.PAGE.ACCEPT
  test('R-TDX-5 AUG leaves PENDING; ACCEPT maps; a second ACCEPT finds it accepted', () => {
    const vm = makeTd(16, 0);
    const pending = () => vm.tdx.leafs().map(({ gfn, count, state }) => `${gfn}+${count} ${state}`);
    const augmented = countersMoved(vm, () => vm.vcpus[0].preFaultMemory({ gpa: 0, size: 8 * PAGE }));
    expect(augmented['TDH.MEM.PAGE.AUG']).toBe(8);
    expect(pending()).toEqual(['0+8 PENDING']);
    const accepted = countersMoved(vm, () => expect(accept(vm, 2, 4)).toBe(2));
    const entered = { 'TDH.VP.ENTER': 1, td_tlb_flushes: 1, tlb_flush: 1 };
    expect(accepted).toEqual({ 'TDG.MEM.PAGE.ACCEPT': 2, pages_accepted: 2, ...entered });
    expect(pending()).toEqual(['0+2 PENDING', '2+2 MAPPED', '4+4 PENDING']);
    // PAGE_ALREADY_ACCEPTED: none was PENDING, nothing changes.
    const again = countersMoved(vm, () => expect(accept(vm, 2, 4)).toBe(0));
    expect(again).toEqual({ 'TDG.MEM.PAGE.ACCEPT': 2, seamcalls_refused: 2, 'TDH.VP.ENTER': 1 });
    expect(vm.tdx.statuses()).toEqual({ 'TDG.MEM.PAGE.ACCEPT': { TDX_PAGE_ALREADY_ACCEPTED: 2 } });
    expect(pending()).toEqual(['0+2 PENDING', '2+2 MAPPED', '4+4 PENDING']);
    // ACCEPT of what is not there makes KVM map it first.
    const rest = countersMoved(vm, () => expect(accept(vm, 0, 16)).toBe(14));
    expect(rest).toMatchObject({ 'TDH.MEM.PAGE.AUG': 8, pages_accepted: 14 });
    expect(leavesOf(vm, 'mirror')).toEqual(['0..15 4K']);
    expect(pending().filter((run) => run.includes('PENDING'))).toEqual([]);
    expect(vm.vcpus[0].access({ gpa: 0, kind: 'write', count: 16 })).toMatchObject({ reason: 'done', done: 16 });
  });

  // arch/x86/kvm/vmx/tdx.c: tdx_handle_ept_violation()
  test('R-TDX-6 access to a PENDING page with SEPT_VE_DISABLE kills the VM', () => {
    const vm = makeTd(16, 4);
    vm.vcpus[0].preFaultMemory({ gpa: 8 * PAGE, size: PAGE });
    expect(vm.vcpus[0].access({ gpa: 3 * PAGE, kind: 'read' }).reason).toBe('done');
    const exit = vm.vcpus[0].access({ gpa: 8 * PAGE, kind: 'read' });
    expect(exit).toMatchObject({ reason: 'error', errno: 'EIO' });
    expect(vm.dead).toBe(true);
    const calls = [
      () => set(vm, 0, 1, 0),
      () => vm.vcpus[0].access({ gpa: 0, kind: 'read' }),
      () => vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0, memorySize: 0, userspaceAddr: 0 }),
    ];
    for (const call of calls) expect(call).toThrow(expect.objectContaining({ code: 'EIO' }));
    expect(leavesOf(vm, 'mirror')).toEqual(['0..3 4K', '8..8 4K']);
  });

  // The module's EPT-violation conversion: the guest takes the #VE itself
  test('R-TDX-6 without it the guest takes a #VE, and the VM lives', () => {
    const vm = makeTd(16, 0, { septVeDisable: false });
    expect(vm.vcpus[0].access({ gpa: 0, kind: 'write' }).reason).toBe('ve');
    expect(vm.dead).toBe(false);
    accept(vm, 0, 1);
    expect(vm.vcpus[0].access({ gpa: 0, kind: 'write' }).reason).toBe('done');
  });

  // arch/x86/kvm/mmu/mmu.c: kvm_arch_pre_set_memory_attributes(), both ways
  test.each(KERNELS)('R-TDX-7 to-shared then to-private loses content; needs new ACCEPT (%s)', (kernel) => {
    const vm = makeTd(16, 16, { kernel });
    set(vm, 4, 8, 0);
    expect(vm.losses()).toMatchObject({ privatePagesLost: 4, pagesToAccept: 4 });
    set(vm, 4, 8, PRIVATE);
    expect(leavesOf(vm, 'mirror')).toEqual(['0..3 4K', '8..15 4K']);
    // gmem kept the pages, without what was in them.
    const moved = countersMoved(vm, () => vm.vcpus[0].preFaultMemory({ gpa: 4 * PAGE, size: 4 * PAGE }));
    expect(moved['TDH.MEM.PAGE.AUG']).toBe(4);
    expect(moved.gmem_pages_allocated).toBeUndefined();
    expect(moved['TDH.MEM.SEPT.ADD']).toBeUndefined();
    const pending = vm.tdx.leafs().filter(({ state }) => state === 'PENDING');
    expect(pending).toMatchObject([{ gfn: 4, count: 4 }]);
    expect(accept(vm, 0, 16)).toBe(4);
    // Losing them costs the same again: they hold content since they were accepted.
    set(vm, 4, 8, 0);
    expect(vm.losses()).toMatchObject({ privatePagesLost: 8, pagesToAccept: 8 });
  });

  // arch/x86/kvm/vmx/tdx.c: tdx_gmem_private_max_mapping_level()
  test.each(KERNELS)('R-TDX-8 a private mapping is always 4K, however aligned (%s)', (kernel) => {
    const vm = makeTd(2048, 0, { kernel });
    accept(vm, 0, 1024);
    vm.vcpus[0].preFaultMemory({ gpa: 1024 * PAGE, size: 1024 * PAGE });
    expect(leavesOf(vm, 'mirror')).toEqual(['0..2047 4K']);
    expect(vm.stats()).toMatchObject({ pages_4k: 2048, pages_2m: 0, pages_1g: 0 });
    // The same gfns shared are 2M leaves.
    set(vm, 0, 1024, 0);
    vm.vcpus[0].access({ gpa: 0, kind: 'write', private: false });
    expect(leavesOf(vm, 'direct')).toEqual(['0..511 2M']);
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: kvm_tdp_mmu_zap_all()
  test.each(KERNELS)('R-TDX-11 zap_all at mm exit leaves the mirror as it is (%s)', (kernel) => {
    const vm = makeTd(1024, 1024, { kernel });
    set(vm, 0, 8, 0);
    vm.vcpus[0].access({ gpa: 0, kind: 'write', private: false, count: 8 });
    // The VM's descriptor goes, the file still holds the VM: no mirror leaf is touched by that.
    vm.trace();
    vm.destroy();
    expect(leavesOf(vm, 'mirror')).toEqual(['8..1023 4K']);
    // The file removes its pages while the key is live; then comes zap_all, and the mirror's tables last.
    vm.slotFiles[0]?.close();
    const events = vm.trace() as unknown as AnyEvent[];
    const at = (name: string) => events.findIndex((event) => event.name === name);
    const trees = (from: number, to: number) => {
      const changes = events.slice(from, to).filter(({ name }) => name === 'spte_changed');
      return [...new Set(changes.map(({ root, old }) => `${root} ${(old as { class: string }).class}`))].sort();
    };
    expect(trees(0, at('zap_all'))).toEqual(['mirror leaf']);
    expect(trees(at('zap_all'), at('inv_roots'))).toEqual(['direct leaf', 'direct table']);
    expect(trees(at('inv_roots'), events.length)).toEqual(['mirror table']);
    expect(vm.stats()['TDH.PHYMEM.PAGE.RECLAIM']).toBe(vm.stats()['TDH.MEM.SEPT.ADD']);
  });

  // arch/x86/kvm/vmx/tdx.c: what only these remove: no notifier, aging or soft-dirty call is among them
  test.each<[string, (vm: TestVm) => unknown]>([
    ['munmap', (vm) => vm.host.munmap({ hva: hvaOfSlot(0), length: 64 * PAGE })],
    ['clear_refs', (vm) => vm.host.clearRefs(4)],
    ['aging', (vm) => vm.host.age({ hva: hvaOfSlot(0), length: 64 * PAGE, flush: true })],
    ['migration', (vm) => vm.host.migrate({ hva: hvaOfSlot(0), length: 64 * PAGE })],
    ['nx_huge_pages', (vm) => vm.writeParameter('nx_huge_pages', true)],
  ])('R-TDX-11 nor does %s touch a mirror leaf', (_, act) => {
    const vm = makeTd(64, 64);
    const moved = counted(vm, [...SEAMCALLS, 'private_pages_lost'], () => act(vm));
    expect(Object.values(moved)).toEqual([0, 0, 0, 0, 0, 0]);
    expect(leavesOf(vm, 'mirror')).toEqual(['0..63 4K']);
    expect(vm.vcpus[0].access({ gpa: 0, kind: 'write', count: 64 }).reason).toBe('done');
  });

  // Invariant: the mirror equals what it mirrors
  test('R-TDX-13 every mirror leaf has one page behind it, AUGed once more often than REMOVEd', () => {
    const vm = makeTd(1024, 100);
    const consistent = () => {
      const leafs = vm.leafs({ root: 'mirror' }).reduce((sum, { count }) => sum + count, 0);
      const { 'TDH.MEM.PAGE.AUG': augmented, 'TDH.MEM.PAGE.REMOVE': removed } = vm.stats();
      expect(vm.check()).toEqual([]);
      expect(augmented - removed).toBe(leafs);
    };
    const steps: (() => unknown)[] = [
      () => vm.vcpus[0].preFaultMemory({ gpa: 50 * PAGE, size: 600 * PAGE }),
      () => accept(vm, 90, 200),
      () => set(vm, 150, 300, 0),
      () => vm.vcpus[0].access({ gpa: 150 * PAGE, kind: 'write', private: false, count: 20 }),
      () => vm.slotFiles[0]?.punchHole(0, 120 * PAGE),
      () => set(vm, 0, 1024, PRIVATE),
      () => vm.slotFiles[0]?.memoryError(500),
      () => accept(vm, 0, 400),
      () => vm.slotFiles[0]?.close(),
    ];
    for (const step of steps) {
      step();
      consistent();
    }
    expect(leavesOf(vm, 'mirror')).toEqual([]);
  });

  // Invariant: none while FROZEN, aside
  test('R-TDX-13 a FROZEN entry is no leaf yet', () => {
    const vm = makeTd(16, 0);
    const fault = vm.vcpus[0].beginFault({ gpa: 0, kind: 'read' });
    expect(vm.vcpus[0].finishFault(fault)).toBe('frozen');
    expect(leavesOf(vm, 'mirror')).toEqual([]);
    expect(vm.stats()['TDH.MEM.PAGE.AUG']).toBe(0);
    expect(vm.check()).toEqual([]);
    expect(vm.vcpus[0].finishFault(fault)).toBe('fixed');
    expect(vm.stats()['TDH.MEM.PAGE.AUG']).toBe(1);
    expect(leavesOf(vm, 'mirror')).toEqual(['0..0 4K']);
  });

  // arch/x86/kvm/vmx/tdx.c: tdx_track()
  test('R-TDX-2 before FINALIZE the same zaps cost no TRACK and no kick', () => {
    const vm = makeTd(64, 0, { td: { build: true }, vcpus: 4 });
    vm.vcpus[0].initMemRegion({ gpa: 0, pages: 64 });
    const moved = counted(vm, [...SEAMCALLS, 'private_pages_lost', 'pages_cleared'], () => set(vm, 8, 40, 0));
    expect(moved).toEqual({
      'TDH.MEM.RANGE.BLOCK': 32,
      'TDH.MEM.TRACK': 0,
      kicks: 0,
      'TDH.MEM.PAGE.REMOVE': 32,
      'TDH.PHYMEM.PAGE.WBINVD': 32,
      private_pages_lost: 32,
      pages_cleared: 32,
    });
    expect([vm.tdx.epoch, vm.check()]).toEqual([1, []]);
  });

  // The module's TDH.MEM.PAGE.REMOVE and TDH.MEM.TRACK
  test('R-TDX-3 REMOVE fails until TRACK, and until every vCPU that entered before it has left once', () => {
    const vm = makeTd(16, 4, { vcpus: 2 });
    inside(vm, 0, 1);
    expect(call(vm, 'TDH.MEM.RANGE.BLOCK', 2)).toBe('TDX_SUCCESS');
    const remove = () => call(vm, 'TDH.MEM.PAGE.REMOVE', 2);
    expect(remove()).toBe('TDX_TLB_TRACKING_NOT_DONE');
    expect(call(vm, 'TDH.MEM.TRACK')).toBe('TDX_SUCCESS');
    expect(remove()).toBe('TDX_TLB_TRACKING_NOT_DONE');
    vm.vcpus[0].setInGuest(false);
    expect(remove()).toBe('TDX_TLB_TRACKING_NOT_DONE');
    vm.vcpus[1].setInGuest(false);
    inside(vm, 0);
    expect(remove()).toBe('TDX_SUCCESS');
    expect(vm.tdx.entry(2 * PAGE)).toEqual({ state: 'FREE', level: 1 });
    expect(disagreements(vm)).toEqual(['sept-disagrees 2+1']);
  });

  // The module's TDH.MEM.TRACK
  test('R-TDX-4 the second of two TRACKs without an exit finds the previous epoch busy', () => {
    const vm = makeTd(16, 4);
    inside(vm, 0);
    expect(call(vm, 'TDH.MEM.TRACK')).toBe('TDX_SUCCESS');
    expect(call(vm, 'TDH.MEM.TRACK')).toBe('TDX_PREVIOUS_TLB_EPOCH_BUSY');
    expect(vm.tdx.epoch).toBe(2);
    vm.vcpus[0].setInGuest(false);
    expect(call(vm, 'TDH.MEM.TRACK')).toBe('TDX_SUCCESS');
    // Nobody is inside: any number follow.
    expect(call(vm, 'TDH.MEM.TRACK')).toBe('TDX_SUCCESS');
    expect(vm.tdx.epoch).toBe(4);
    expect(vm.tdx.statuses()['TDH.MEM.TRACK']).toEqual({ TDX_PREVIOUS_TLB_EPOCH_BUSY: 1 });
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: set_external_spte_present(); the vCPU tries again
  test.each(['TDH.MEM.SEPT.ADD', 'TDH.MEM.PAGE.AUG'] as const)(
    'R-TDX-9 BUSY on %s gives the old mirror value back, and the fault is retried',
    (leaf) => {
      const vm = makeTd(16, 0);
      const fault = vm.vcpus[0].beginFault({ gpa: 0, kind: 'read' });
      vm.tdx.injectStatus({ leaf, status: 'TDX_OPERAND_BUSY' });
      let result = vm.vcpus[0].finishFault(fault);
      // The leaf's call is made while its entry is FROZEN; that of a table is made before.
      expect(result).toBe(leaf === 'TDH.MEM.PAGE.AUG' ? 'frozen' : 'retry');
      if (result === 'frozen') result = vm.vcpus[0].finishFault(fault);
      expect(result).toBe('retry');
      expect([leavesOf(vm, 'mirror'), septOf(vm), vm.check(), vm.dead]).toEqual([[], [], [], false]);
      expect(vm.stats().retries_busy).toBe(1);
      expect(accept(vm, 0, 16)).toBe(16);
      expect([leavesOf(vm, 'mirror'), vm.check()]).toEqual([['0..15 4K'], []]);
    },
  );

  // arch/x86/kvm/mmu/tdp_mmu.c: __tdp_mmu_set_spte_atomic(); arch/x86/kvm/vmx/tdx.c: KVM_BUG_ON()
  test.each(['TDH.MEM.SEPT.ADD', 'TDH.MEM.PAGE.AUG'] as const)(
    'R-TDX-9 any other failure of %s bugs the VM with EIO',
    (leaf) => {
      const vm = makeTd(16, 0);
      vm.tdx.injectStatus({ leaf, status: 'TDX_OPERAND_INVALID' });
      expect(codeOf(() => accept(vm, 0, 1))).toBe('EIO');
      expect([vm.dead, leavesOf(vm, 'mirror'), septOf(vm)]).toEqual([true, [], []]);
    },
  );

  // arch/x86/kvm/vmx/tdx.c: tdx_sept_zap_private_spte(), tdx_track(), tdx_sept_drop_private_spte()
  test.each(['TDH.MEM.RANGE.BLOCK', 'TDH.MEM.TRACK', 'TDH.MEM.PAGE.REMOVE'] as const)(
    'R-TDX-9 BUSY once on %s: the call is made again with all vCPUs out, and succeeds',
    (leaf) => {
      const vm = makeTd(16, 16, { vcpus: 3 });
      inside(vm, 0, 2);
      vm.tdx.injectStatus({ leaf, status: 'TDX_OPERAND_BUSY' });
      const moved = countersMoved(vm, () => set(vm, 4, 5, 0));
      // One kick is TRACK's, one takes the vCPUs out for the second call: two of three vCPUs are inside each time.
      expect(moved).toMatchObject({ retries_busy: 1, seamcalls_refused: 1, kicks: 2, kick_ipis: 4 });
      for (const name of SEAMCALLS) if (name !== 'kicks') expect(moved[name], name).toBe(name === leaf ? 2 : 1);
      expect([vm.dead, vm.check(), septOf(vm)]).toEqual([false, [], ['0+4 MAPPED', '5+11 MAPPED']]);
      // They are back inside, in the newest epoch.
      expect(moved['TDH.VP.ENTER']).toBe(4);
      expect(vm.vcpus[2].access({ gpa: 0, kind: 'read' }).reason).toBe('done');
    },
  );

  // As above: "TDX_BUG_ON" after the second failure
  test.each<[LeafName, string[]]>([
    ['TDH.MEM.RANGE.BLOCK', ['0+16 MAPPED']],
    // Blocked, and never tracked: REMOVE is refused too.
    ['TDH.MEM.TRACK', ['0+4 MAPPED', '4+1 BLOCKED', '5+11 MAPPED']],
    ['TDH.MEM.PAGE.REMOVE', ['0+4 MAPPED', '4+1 BLOCKED', '5+11 MAPPED']],
  ])('R-TDX-9 BUSY twice on %s bugs the VM; mirror and S-EPT disagree', (leaf, sept) => {
    const vm = makeTd(16, 16, { vcpus: 2 });
    inside(vm, 0, 1);
    vm.tdx.injectStatus({ leaf, status: 'TDX_OPERAND_BUSY', times: 2 });
    const moved = countersMoved(vm, () => set(vm, 4, 5, 0));
    expect(moved[leaf]).toBe(2);
    expect(moved.private_pages_lost).toBeUndefined();
    expect(vm.dead).toBe(true);
    expect([leavesOf(vm, 'mirror'), septOf(vm)]).toEqual([['0..3 4K', '5..15 4K'], sept]);
    expect(disagreements(vm)).toEqual(['sept-disagrees 4+1']);
    expect(() => set(vm, 0, 1, 0)).toThrow(expect.objectContaining({ code: 'EIO' }));
    // What the TD still owns when its file goes is lost to the host.
    vm.slotFiles[0]?.close();
    expect(vm.stats().pages_leaked).toBe(1);
  });

  // arch/x86/kvm/vmx/tdx.c: tdx_operand_busy() when a guest's ACCEPT holds the tree
  test('R-TDX-9 an ACCEPT under way makes BLOCK busy; the kick ends it, and BLOCK succeeds', () => {
    const vm = makeTd(16, 8, { vcpus: 2 });
    mapPending(vm, 8, 12);
    vm.vcpus[1].beginAccept({ gpa: 8 * PAGE });
    const moved = countersMoved(vm, () => set(vm, 2, 3, 0));
    expect(moved).toMatchObject({ 'TDH.MEM.RANGE.BLOCK': 2, retries_busy: 1, pages_accepted: 1 });
    expect(vm.dead).toBe(false);
    expect(septOf(vm)).toEqual(['0+2 MAPPED', '3+6 MAPPED', '9+3 PENDING']);
    expect(codeOf(() => vm.vcpus[1].finishAccept())).toBe('EINVAL');
  });

  // arch/x86/kvm/vmx/tdx.c: tdx_sept_free_private_spt()
  test.each([
    ['TDH.MNG.VPFLUSHDONE', 'TDX_FLUSHVP_NOT_DONE'],
    ['TDH.MNG.KEY.FREEID', 'TDX_OPERAND_BUSY'],
  ] as const)('R-TDX-10 freeing mirror tables while the key is assigned (%s: %s) bugs the VM', (leaf, status) => {
    const vm = makeTd(1024, 1024);
    const { tables } = vm.stats();
    vm.slotFiles[0]?.close();
    vm.tdx.injectStatus({ leaf, status });
    const moved = countersMoved(vm, () => vm.destroy());
    expect(vm.dead).toBe(true);
    // One table of level 3, one of level 2, two of level 1: none comes back.
    expect(tables).toBe(4);
    expect(moved.pages_leaked).toBe(4);
    expect(moved['TDH.PHYMEM.PAGE.RECLAIM']).toBeUndefined();
  });
  test('R-TDX-10 with the key released each is reclaimed', () => {
    const vm = makeTd(1024, 1024);
    vm.slotFiles[0]?.close();
    const moved = countersMoved(vm, () => vm.destroy());
    expect([vm.dead, moved['TDH.PHYMEM.PAGE.RECLAIM'], moved.pages_leaked]).toEqual([false, 4, undefined]);
  });

  describe('R-TDX-12 MapGPA', () => {
    const MIB = 2 ** 20;
    const makeMapper = (options: Partial<CreateVmOptions> = {}) => {
      const vm = makeTd(2048, 0, options);
      vm.enableCap({ cap: 201, args: [1 << 12] });
      return vm;
    };
    const spans = (exits: { gpa: bigint; npages: number }[]) =>
      exits.map(({ gpa, npages }) => [Number(gpa) / MIB, (npages * PAGE) / MIB]);

    // arch/x86/kvm/vmx/tdx.c: tdx_map_gpa(), TDX_MAP_GPA_MAX_LEN
    test('of 5 MiB: exits of 2, 2 and 1 MiB', () => {
      const vm = makeMapper();
      const { status, exits } = vm.vcpus[0].mapGpa({ gpa: SHARED_BIT + MIB, size: 5 * MIB });
      expect([status, spans(exits)]).toEqual([
        'SUCCESS',
        [
          [1, 2],
          [3, 2],
          [5, 1],
        ],
      ]);
      expect(exits.every((exit) => !exit.private)).toBe(true);
      expect(vm.stats().exits_hypercall).toBe(3);
      expect([255, 256, 1535, 1536].map((gfn) => vm.attributesOf(gfn))).toEqual([8, 0, 0, 8]);
    });
    test('to private and back: without the shared bit', () => {
      const vm = makeMapper();
      accept(vm, 0, 512);
      vm.vcpus[0].mapGpa({ gpa: SHARED_BIT, size: 2 * MIB });
      expect(vm.losses().privatePagesLost).toBe(512);
      expect(vm.vcpus[0].mapGpa({ gpa: 0, size: 2 * MIB })).toMatchObject({
        status: 'SUCCESS',
        exits: [{ gpa: 0n, npages: 512, private: true }],
      });
      expect(vm.attributesOf(0)).toBe(8);
    });
    test.each<[string, bigint, bigint, string]>([
      ['a size of nothing', 0n, 0n, 'INVALID_OPERAND'],
      ['a size that wraps', 0x1000n, 2n ** 64n - 0x1000n, 'INVALID_OPERAND'],
      ['an address out of range', 2n ** 52n, 0x1000n, 'INVALID_OPERAND'],
      ['a range that ends out of range', 2n ** 52n - 0x1000n, 0x2000n, 'INVALID_OPERAND'],
      ['a range across the shared bit', 2n ** 47n - 0x1000n, 0x2000n, 'INVALID_OPERAND'],
      ['an unaligned address', 0x800n, 0x1000n, 'ALIGN_ERROR'],
      ['an unaligned size', 0n, 0x1800n, 'ALIGN_ERROR'],
    ])('of %s is refused without an exit', (_, gpa, size, status) => {
      const vm = makeMapper();
      expect(vm.vcpus[0].mapGpa({ gpa, size })).toEqual({ status, exits: [] });
      expect(vm.stats().exits_hypercall).toBe(0);
    });
    test('without KVM_CAP_EXIT_HYPERCALL it is no subfunction', () => {
      const vm = makeTd(16, 0);
      expect(vm.vcpus[0].mapGpa({ gpa: 0, size: PAGE }).status).toBe('SUBFUNC_UNSUPPORTED');
    });
    test('a hypercall that userspace fails ends it there, with the address in r11', () => {
      const vm = makeMapper();
      let answers = 0;
      const result = vm.vcpus[0].mapGpa({ gpa: SHARED_BIT, size: 5 * MIB, complete: () => (++answers === 2 ? 1 : 0) });
      expect(result).toMatchObject({ status: 'INVALID_OPERAND', r11: BigInt(SHARED_BIT + 2 * MIB) });
      expect(spans(result.exits)).toEqual([
        [0, 2],
        [2, 2],
      ]);
    });
    test('an interrupt between two chunks asks the guest to go on at r11', () => {
      const vm = makeMapper();
      const first = vm.vcpus[0].mapGpa({ gpa: SHARED_BIT, size: 5 * MIB, interruptAfter: 1 });
      expect(first).toMatchObject({ status: 'RETRY', r11: BigInt(SHARED_BIT + 2 * MIB) });
      expect([vm.attributesOf(511), vm.attributesOf(512)]).toEqual([0, 8]);
      // Behind the last chunk there is nothing to go on with.
      expect(vm.vcpus[0].mapGpa({ gpa: SHARED_BIT, size: 2 * MIB, interruptAfter: 1 }).status).toBe('SUCCESS');
    });
    test('a TD that is being built has no guest that could ask', () => {
      const vm = makeMapper({ td: { build: true } });
      expect(codeOf(() => vm.vcpus[0].mapGpa({ gpa: 0, size: PAGE }))).toBe('EINVAL');
    });
  });
});

describe('7.1 each leaf function, in each state', () => {
  const [ADD_TABLE, PAGE_ADD, AUG] = ['TDH.MEM.SEPT.ADD', 'TDH.MEM.PAGE.ADD', 'TDH.MEM.PAGE.AUG'];
  const [BLOCK, TRACK, REMOVE] = ['TDH.MEM.RANGE.BLOCK', 'TDH.MEM.TRACK', 'TDH.MEM.PAGE.REMOVE'];
  const [DEMOTE, PROMOTE, ACCEPT] = ['TDH.MEM.PAGE.DEMOTE', 'TDH.MEM.PAGE.PROMOTE', 'TDG.MEM.PAGE.ACCEPT'];
  type Step = [leaf: string, gfn?: number, level?: number];
  /** Tables down to 4K for [0, 512), down to 2M for [512, 1G). */
  const TABLES: Step[] = [
    [ADD_TABLE, 0, 4],
    [ADD_TABLE, 0, 3],
    [ADD_TABLE, 0, 2],
  ];
  const TEARDOWN = ['the key is released'] as unknown as Step;
  const LOCK = ['another ACCEPT holds the tree'] as unknown as Step;
  const LOCK_ENTRY = ['an ACCEPT of gfn 7 is under way'] as unknown as Step;
  const INSIDE = ['vCPU 1 is inside'] as unknown as Step;
  const all = (leaf: string): Step[] => Array.from({ length: 512 }, (_, gfn) => [leaf, gfn]);
  function prepared(build: boolean, steps: Step[]): TestVm {
    const vm = makeTd(2048, 0, { vcpus: 2, td: { build } });
    for (const step of steps) {
      if (step === TEARDOWN) vm.tdx.terminate();
      else if (step === INSIDE) inside(vm, 1);
      else if (step === LOCK) vm.vcpus[0].beginAccept({ gpa: 9 * PAGE });
      else if (step === LOCK_ENTRY) vm.vcpus[0].beginAccept({ gpa: 7 * PAGE });
      else expect(call(vm, ...step), step.join(' ')).toBe('TDX_SUCCESS');
    }
    return vm;
  }
  type Row = [what: string, before: Step[], run: Step, status: TdxStatus, state?: string];
  const RUNNABLE: Row[] = [
    ['SEPT.ADD links a table', TABLES.slice(0, 1), [ADD_TABLE, 0, 3], 'TDX_SUCCESS', 'NL_MAPPED L3'],
    ['SEPT.ADD where a table is linked', TABLES, [ADD_TABLE, 0, 3], 'TDX_EPT_ENTRY_STATE_INCORRECT', 'NL_MAPPED L3'],
    [
      'SEPT.ADD where a leaf is',
      [...TABLES, [AUG, 512, 2]],
      [ADD_TABLE, 512, 2],
      'TDX_EPT_ENTRY_STATE_INCORRECT',
      'PENDING L2',
    ],
    ['SEPT.ADD without the parents', [], [ADD_TABLE, 0, 2], 'TDX_EPT_WALK_FAILED', 'FREE L4'],
    ['SEPT.ADD of a 4K entry', TABLES, [ADD_TABLE, 0, 1], 'TDX_OPERAND_INVALID'],
    ['SEPT.ADD of the root', TABLES, [ADD_TABLE, 0, 5], 'TDX_OPERAND_INVALID'],
    ['SEPT.ADD askew', TABLES, [ADD_TABLE, 5, 2], 'TDX_OPERAND_INVALID'],
    ['SEPT.ADD of a shared address', TABLES, [ADD_TABLE, SHARED_BIT / PAGE, 2], 'TDX_OPERAND_INVALID'],
    ['SEPT.ADD under a blocked table', [...TABLES, [BLOCK, 0, 3]], [ADD_TABLE, 512, 2], 'TDX_EPT_WALK_FAILED'],

    ['PAGE.ADD to a TD that runs', TABLES, [PAGE_ADD, 7], 'TDX_OP_STATE_INCORRECT', 'FREE'],

    ['AUG of a FREE entry', TABLES, [AUG, 7], 'TDX_SUCCESS', 'PENDING'],
    ['AUG of a FREE 2M entry', TABLES, [AUG, 512, 2], 'TDX_SUCCESS', 'PENDING L2'],
    ['AUG of 1G', TABLES, [AUG, 0, 3], 'TDX_OPERAND_INVALID'],
    ['AUG of 2M askew', TABLES, [AUG, 7, 2], 'TDX_OPERAND_INVALID'],
    ['AUG of a shared address', TABLES, [AUG, SHARED_BIT / PAGE], 'TDX_OPERAND_INVALID'],
    ['AUG without a parent', TABLES, [AUG, 512, 1], 'TDX_EPT_WALK_FAILED', 'FREE L2'],
    ['AUG of 2M where a table is', TABLES, [AUG, 0, 2], 'TDX_EPT_ENTRY_STATE_INCORRECT', 'NL_MAPPED L2'],
    ['AUG of what is PENDING', [...TABLES, [AUG, 7]], [AUG, 7], 'TDX_EPT_ENTRY_STATE_INCORRECT', 'PENDING'],
    ['AUG of what is MAPPED', [...TABLES, [AUG, 7], [ACCEPT, 7]], [AUG, 7], 'TDX_EPT_ENTRY_STATE_INCORRECT', 'MAPPED'],
    ['AUG inside a 2M leaf', [...TABLES, [AUG, 512, 2]], [AUG, 513], 'TDX_EPT_ENTRY_STATE_INCORRECT', 'PENDING L2'],
    ['AUG under a blocked table', [...TABLES, [BLOCK, 0, 2]], [AUG, 7], 'TDX_EPT_WALK_FAILED', 'NL_BLOCKED'],
    ['AUG of an entry that is locked', [...TABLES, [AUG, 7], LOCK_ENTRY], [AUG, 7], 'TDX_OPERAND_BUSY', 'PENDING'],
    ['AUG beside it, the tree being shared', [...TABLES, [AUG, 7], LOCK_ENTRY], [AUG, 8], 'TDX_SUCCESS', 'PENDING'],

    ['BLOCK of what is MAPPED', [...TABLES, [AUG, 7], [ACCEPT, 7]], [BLOCK, 7], 'TDX_SUCCESS', 'BLOCKED'],
    ['BLOCK of what is PENDING', [...TABLES, [AUG, 7]], [BLOCK, 7], 'TDX_SUCCESS', 'PENDING_BLOCKED'],
    ['BLOCK of a table', TABLES, [BLOCK, 0, 2], 'TDX_SUCCESS', 'NL_BLOCKED L2'],
    [
      'BLOCK of a blocked leaf',
      [...TABLES, [AUG, 7], [BLOCK, 7]],
      [BLOCK, 7],
      'TDX_GPA_RANGE_ALREADY_BLOCKED',
      'PENDING_BLOCKED',
    ],
    [
      'BLOCK of a blocked table',
      [...TABLES, [BLOCK, 0, 2]],
      [BLOCK, 0, 2],
      'TDX_GPA_RANGE_ALREADY_BLOCKED',
      'NL_BLOCKED L2',
    ],
    ['BLOCK of what is FREE', TABLES, [BLOCK, 7], 'TDX_EPT_ENTRY_STATE_INCORRECT', 'FREE'],
    ['BLOCK below the tables', TABLES, [BLOCK, 512], 'TDX_EPT_WALK_FAILED'],
    [
      'BLOCK of a part of a 2M leaf',
      [...TABLES, [AUG, 512, 2]],
      [BLOCK, 513],
      'TDX_EPT_ENTRY_STATE_INCORRECT',
      'PENDING L2',
    ],
    ['BLOCK while anyone has the tree', [...TABLES, [AUG, 7], LOCK], [BLOCK, 7], 'TDX_OPERAND_BUSY', 'PENDING'],

    ['REMOVE of what is not blocked', [...TABLES, [AUG, 7]], [REMOVE, 7], 'TDX_GPA_RANGE_NOT_BLOCKED', 'PENDING'],
    [
      'REMOVE of what is not tracked',
      [...TABLES, [AUG, 7], INSIDE, [BLOCK, 7]],
      [REMOVE, 7],
      'TDX_TLB_TRACKING_NOT_DONE',
      'PENDING_BLOCKED',
    ],
    ['REMOVE of what is', [...TABLES, [AUG, 7], [BLOCK, 7], [TRACK]], [REMOVE, 7], 'TDX_SUCCESS', 'FREE'],
    [
      'REMOVE of a 2M leaf',
      [...TABLES, [AUG, 512, 2], [BLOCK, 512, 2], [TRACK]],
      [REMOVE, 512, 2],
      'TDX_SUCCESS',
      'FREE L2',
    ],
    ['REMOVE of what is FREE', TABLES, [REMOVE, 7], 'TDX_EPT_ENTRY_STATE_INCORRECT', 'FREE'],
    ['REMOVE of a table', TABLES, [REMOVE, 0, 2], 'TDX_EPT_ENTRY_STATE_INCORRECT', 'NL_MAPPED L2'],
    ['REMOVE below the tables', TABLES, [REMOVE, 512], 'TDX_EPT_WALK_FAILED'],

    [
      'DEMOTE of a PENDING leaf',
      [...TABLES, [AUG, 512, 2], [BLOCK, 512, 2], [TRACK]],
      [DEMOTE, 512, 2],
      'TDX_SUCCESS',
      'NL_MAPPED L2',
    ],
    [
      'DEMOTE of what is not blocked',
      [...TABLES, [AUG, 512, 2]],
      [DEMOTE, 512, 2],
      'TDX_GPA_RANGE_NOT_BLOCKED',
      'PENDING L2',
    ],
    [
      'DEMOTE of what is not tracked',
      [...TABLES, [AUG, 512, 2], INSIDE, [BLOCK, 512, 2]],
      [DEMOTE, 512, 2],
      'TDX_TLB_TRACKING_NOT_DONE',
      'PENDING_BLOCKED L2',
    ],
    ['DEMOTE of 4K', [...TABLES, [AUG, 7]], [DEMOTE, 7], 'TDX_OPERAND_INVALID', 'PENDING'],
    ['DEMOTE of a table', TABLES, [DEMOTE, 0, 2], 'TDX_EPT_ENTRY_STATE_INCORRECT', 'NL_MAPPED L2'],

    [
      'PROMOTE of 512 PENDING',
      [...TABLES, ...all(AUG), [BLOCK, 0, 2], [TRACK]],
      [PROMOTE, 0, 2],
      'TDX_SUCCESS',
      'PENDING L2',
    ],
    [
      'PROMOTE of 512 MAPPED',
      [...TABLES, ...all(AUG), ...all(ACCEPT), [BLOCK, 0, 2], [TRACK]],
      [PROMOTE, 0, 2],
      'TDX_SUCCESS',
      'MAPPED L2',
    ],
    [
      'PROMOTE of a mixture',
      [...TABLES, ...all(AUG), [ACCEPT, 7], [BLOCK, 0, 2], [TRACK]],
      [PROMOTE, 0, 2],
      'TDX_EPT_ENTRY_STATE_INCORRECT',
      'NL_BLOCKED L2',
    ],
    [
      'PROMOTE of 511',
      [...TABLES, ...all(AUG).slice(1), [BLOCK, 0, 2], [TRACK]],
      [PROMOTE, 0, 2],
      'TDX_EPT_ENTRY_STATE_INCORRECT',
      'NL_BLOCKED L2',
    ],
    [
      'PROMOTE of what is not blocked',
      [...TABLES, ...all(AUG)],
      [PROMOTE, 0, 2],
      'TDX_GPA_RANGE_NOT_BLOCKED',
      'NL_MAPPED L2',
    ],
    ['PROMOTE of a leaf', [...TABLES, [AUG, 512, 2]], [PROMOTE, 512, 2], 'TDX_EPT_ENTRY_STATE_INCORRECT', 'PENDING L2'],

    ['ACCEPT of what is PENDING', [...TABLES, [AUG, 7]], [ACCEPT, 7], 'TDX_SUCCESS', 'MAPPED'],
    ['ACCEPT of a PENDING 2M leaf', [...TABLES, [AUG, 512, 2]], [ACCEPT, 512, 2], 'TDX_SUCCESS', 'MAPPED L2'],
    [
      'ACCEPT of what is MAPPED',
      [...TABLES, [AUG, 7], [ACCEPT, 7]],
      [ACCEPT, 7],
      'TDX_PAGE_ALREADY_ACCEPTED',
      'MAPPED',
    ],
    ['ACCEPT of what is FREE', TABLES, [ACCEPT, 7], 'EPT_VIOLATION', 'FREE'],
    ['ACCEPT of what is blocked', [...TABLES, [AUG, 7], [BLOCK, 7]], [ACCEPT, 7], 'EPT_VIOLATION', 'PENDING_BLOCKED'],
    ['ACCEPT under a blocked table', [...TABLES, [AUG, 7], [BLOCK, 0, 2]], [ACCEPT, 7], 'EPT_VIOLATION', 'NL_BLOCKED'],
    ['ACCEPT of 4K of a PENDING 2M leaf', [...TABLES, [AUG, 512, 2]], [ACCEPT, 512, 1], 'EPT_VIOLATION', 'PENDING L2'],
    [
      'ACCEPT of 4K of a MAPPED 2M leaf',
      [...TABLES, [AUG, 512, 2], [ACCEPT, 512, 2]],
      [ACCEPT, 513, 1],
      'TDX_PAGE_ALREADY_ACCEPTED',
      'MAPPED L2',
    ],
    [
      'ACCEPT of 2M where 4K is mapped',
      [...TABLES, [AUG, 7]],
      [ACCEPT, 0, 2],
      'TDX_PAGE_SIZE_MISMATCH',
      'NL_MAPPED L2',
    ],
    [
      'ACCEPT of an entry that is locked',
      [...TABLES, [AUG, 7], LOCK_ENTRY],
      [ACCEPT, 7],
      'TDX_OPERAND_BUSY',
      'PENDING',
    ],
    ['ACCEPT of 1G', TABLES, [ACCEPT, 0, 3], 'TDX_OPERAND_INVALID'],

    ['TRACK with nobody inside', [], [TRACK], 'TDX_SUCCESS'],
    ['TRACK with a vCPU of the previous epoch inside', [INSIDE, [TRACK]], [TRACK], 'TDX_PREVIOUS_TLB_EPOCH_BUSY'],
  ];
  const BUILD: Row[] = [
    ['PAGE.ADD', TABLES, [PAGE_ADD, 7], 'TDX_SUCCESS', 'MAPPED'],
    ['PAGE.ADD of 2M', TABLES, [PAGE_ADD, 512, 2], 'TDX_OPERAND_INVALID'],
    ['PAGE.ADD without a parent', TABLES, [PAGE_ADD, 512], 'TDX_EPT_WALK_FAILED'],
    [
      'PAGE.ADD of what is MAPPED',
      [...TABLES, [PAGE_ADD, 7]],
      [PAGE_ADD, 7],
      'TDX_EPT_ENTRY_STATE_INCORRECT',
      'MAPPED',
    ],
    ['AUG', TABLES, [AUG, 7], 'TDX_OP_STATE_INCORRECT', 'FREE'],
    ['TRACK', TABLES, [TRACK], 'TDX_OP_STATE_INCORRECT'],
    ['BLOCK', [...TABLES, [PAGE_ADD, 7]], [BLOCK, 7], 'TDX_SUCCESS', 'BLOCKED'],
    ['REMOVE of what is neither blocked nor tracked', [...TABLES, [PAGE_ADD, 7]], [REMOVE, 7], 'TDX_SUCCESS', 'FREE'],
    ['REMOVE of what is blocked', [...TABLES, [PAGE_ADD, 7], [BLOCK, 7]], [REMOVE, 7], 'TDX_SUCCESS', 'FREE'],
  ];

  function holds(build: boolean, [, before, run, status, state]: Row): void {
    const vm = prepared(build, before);
    const [leaf, gfn = 0, level = 1] = run;
    const refused = vm.stats().seamcalls_refused;
    expect(call(vm, leaf, gfn, level)).toBe(status);
    const isFailure = status !== 'TDX_SUCCESS' && status !== 'EPT_VIOLATION';
    expect(vm.stats().seamcalls_refused - refused).toBe(isFailure ? 1 : 0);
    if (status !== 'TDX_SUCCESS') expect(vm.tdx.statuses()[leaf as LeafName]?.[status]).toBe(1);
    if (state === undefined) return;
    const entry = vm.tdx.entry(gfn * PAGE, level);
    expect(`${entry.state}${entry.level === 1 ? '' : ` L${entry.level}`}`).toBe(state);
  }
  test.each(RUNNABLE)('%s', (...row) => holds(false, row));
  test.each(BUILD)('while the TD is built: %s', (...row) => holds(true, row));
  // A terminated VM takes no more calls: the pages are the host's to reclaim.
  test('after the key is released no call is made past KVM', () => {
    const vm = prepared(false, [...TABLES, TEARDOWN]);
    expect(codeOf(() => call(vm, AUG, 7))).toBe('EIO');
  });

  // The PAMT: a page belongs to one entry
  test('AUG of a page that the TD has elsewhere: PAGE_METADATA_INCORRECT, and KVM bugs the VM', () => {
    const vm = makeTd(64, 0);
    mapPending(vm, 0, 1);
    vm.slotFiles[0]?.allocate(7 * PAGE, PAGE);
    expect(call(vm, AUG, 7)).toBe('TDX_SUCCESS');
    // KVM knows of gfn 0 alone: gfn 7 stays in the S-EPT when the slot goes, and the page behind it the TD's.
    const fd = vm.slotFiles[0]?.fd;
    const region = { slot: 0, flags: 4, userspaceAddr: hvaOfSlot(0), guestMemfd: fd };
    vm.setUserMemoryRegion2({ ...region, guestPhysAddr: 0, memorySize: 0 });
    expect([septOf(vm), disagreements(vm)]).toEqual([['7+1 PENDING'], ['sept-disagrees 7+1']]);
    vm.setUserMemoryRegion2({ ...region, guestPhysAddr: 512 * PAGE, memorySize: 64 * PAGE });
    set(vm, 512, 576, PRIVATE);
    expect(codeOf(() => mapPending(vm, 519, 520))).toBe('EIO');
    expect(vm.tdx.statuses()['TDH.MEM.PAGE.AUG']).toEqual({ TDX_PAGE_METADATA_INCORRECT: 1 });
    expect(vm.dead).toBe(true);
  });

  test('512 children of a DEMOTE have the state of the leaf, and are not blocked', () => {
    const vm = prepared(false, [...TABLES, [AUG, 512, 2], [ACCEPT, 512, 2], [BLOCK, 512, 2], [TRACK]]);
    expect(call(vm, DEMOTE, 512, 2)).toBe('TDX_SUCCESS');
    expect(septOf(vm)).toEqual(['512+512 MAPPED']);
    expect(call(vm, REMOVE, 600)).toBe('TDX_GPA_RANGE_NOT_BLOCKED');
  });
  test('a call past KVM is seen by vm.check(), and a zap of KVM goes by the mirror alone', () => {
    const vm = makeTd(64, 8);
    expect(call(vm, AUG, 20)).toBe('TDX_SUCCESS');
    expect(disagreements(vm)).toEqual(['sept-disagrees 20+1']);
    const moved = counted(vm, SEAMCALLS, () => set(vm, 0, 64, 0));
    expect(Object.values(moved)).toEqual([8, 8, 8, 8, 8]);
    expect([septOf(vm), vm.dead]).toEqual([['20+1 PENDING'], false]);
  });
  test('KVM bugs the VM where the S-EPT lacks a leaf of the mirror', () => {
    const vm = makeTd(64, 8);
    for (const leaf of [BLOCK, TRACK, REMOVE]) expect(call(vm, leaf, 3)).toBe('TDX_SUCCESS');
    set(vm, 0, 8, 0);
    expect(vm.dead).toBe(true);
    expect(vm.tdx.statuses()['TDH.MEM.RANGE.BLOCK']).toEqual({ TDX_EPT_ENTRY_STATE_INCORRECT: 1 });
    // The others of the range were removed all the same.
    expect([septOf(vm), leavesOf(vm, 'mirror')]).toEqual([[], []]);
  });
});

describe('7.7 the build phase', () => {
  const makeBuilt = (options: Partial<CreateVmOptions> = {}) => makeTd(1024, 0, { td: { build: true }, ...options });
  const init = (vm: Vm, start: number, pages: number, more: object = {}) =>
    vm.vcpus[0].initMemRegion({ gpa: start * PAGE, pages, ...more });

  test('adds each page, measures it in 16 chunks, and the TD runs after FINALIZE', () => {
    const vm = makeBuilt();
    const moved = countersMoved(vm, () => init(vm, 16, 100, { measure: true }));
    expect(moved).toMatchObject({ 'TDH.MEM.PAGE.ADD': 100, 'TDH.MR.EXTEND': 1600, 'TDH.MEM.SEPT.ADD': 3 });
    expect(moved['TDH.MEM.PAGE.AUG']).toBeUndefined();
    expect([vm.tdx.state, septOf(vm), vm.check()]).toEqual(['build', ['16+100 MAPPED'], []]);
    vm.tdx.finalize();
    expect(vm.tdx.state).toBe('runnable');
    // Its content is there: no accept is needed, and none is possible again.
    expect(vm.vcpus[0].access({ gpa: 16 * PAGE, kind: 'read', count: 100 })).toMatchObject({
      reason: 'done',
      done: 100,
    });
    expect(accept(vm, 16, 116)).toBe(0);
    expect(codeOf(() => vm.tdx.finalize())).toBe('EINVAL');
  });

  test.each<[string, object]>([
    ['an unaligned address', { gpa: 1, pages: 1 }],
    ['an unaligned source', { gpa: 0, pages: 1, source: 8 }],
    ['no pages', { gpa: 0, pages: 0 }],
    ['pages that wrap', { gpa: PAGE, pages: 2n ** 52n }],
    ['a shared address', { gpa: SHARED_BIT, pages: 1 }],
    ['a range that ends shared', { gpa: SHARED_BIT - PAGE, pages: 2 }],
    ['gfns without a slot', { gpa: 4096 * PAGE, pages: 1 }],
    ['gfns that are shared by attribute', { gpa: 900 * PAGE, pages: 1 }],
  ])('%s: EINVAL, and nothing changes', (_, args) => {
    const vm = makeBuilt();
    set(vm, 900, 1024, 0);
    expect(refusalOf(vm, () => vm.vcpus[0].initMemRegion(args as never))).toBe('EINVAL');
  });
  test('a page that is there already: EEXIST, after those before it', () => {
    const vm = makeBuilt();
    init(vm, 8, 1);
    const thrown = (() => {
      try {
        init(vm, 0, 16);
      } catch (error) {
        return error as KvmError;
      }
      throw new Error('not refused');
    })();
    expect(thrown.code).toBe('EEXIST');
    expect(thrown.left).toEqual({ gpa: BigInt(8 * PAGE), size: BigInt(8 * PAGE) });
    expect(septOf(vm)).toEqual(['0+9 MAPPED']);
  });
  test('a signal: EINTR with the progress written back', () => {
    const vm = makeBuilt();
    expect(() => init(vm, 0, 600, { signalAfter: 520 })).toThrow(
      expect.objectContaining({ code: 'EINTR', left: { gpa: BigInt(520 * PAGE), size: BigInt(80 * PAGE) } }),
    );
    expect(septOf(vm)).toEqual(['0+520 MAPPED']);
    init(vm, 520, 80);
    expect(septOf(vm)).toEqual(['0+600 MAPPED']);
  });
  test('a zap over a premapped page makes one BLOCK for each leaf of the mirror, and none where nothing is mapped', () => {
    const vm = makeBuilt();
    vm.vcpus[0].initMemRegion({ gpa: 520 * PAGE, pages: 4 });
    vm.tdx.injectStatus({ leaf: 'TDH.MEM.PAGE.ADD', status: 'TDX_OPERAND_BUSY' });
    expect(codeOf(() => vm.vcpus[0].initMemRegion({ gpa: 600 * PAGE, pages: 1 }))).toBe('EBUSY');
    // gfns [0, 512) have no table: a BLOCK there would fail to walk.
    const moved = countersMoved(vm, () => vm.slotFiles[0]?.punchHole(0, 1024 * PAGE));
    expect(moved).toMatchObject({ 'TDH.MEM.RANGE.BLOCK': 5, 'TDH.MEM.PAGE.REMOVE': 4, seamcalls_refused: 1 });
    expect(vm.check()).toEqual([]);
    vm.tdx.finalize();
  });

  test('a PAGE.ADD that fails leaves the page premapped: FINALIZE refuses until it is added, or unmapped', () => {
    const vm = makeBuilt();
    vm.tdx.injectStatus({ leaf: 'TDH.MEM.PAGE.ADD', status: 'TDX_OPERAND_BUSY' });
    expect(codeOf(() => init(vm, 4, 2))).toBe('EBUSY');
    expect([septOf(vm), leavesOf(vm, 'mirror'), vm.check()]).toEqual([[], ['4..4 4K'], []]);
    expect(codeOf(() => vm.tdx.finalize())).toBe('EINVAL');
    const premapped = vm.snapshot();
    init(vm, 4, 2);
    expect(septOf(vm)).toEqual(['4+2 MAPPED']);
    vm.tdx.finalize();

    vm.restore(premapped);
    const moved = counted(vm, SEAMCALLS, () => set(vm, 0, 8, 0));
    // BLOCK finds no entry, as KVM expects of a premapped page.
    expect(Object.values(moved)).toEqual([1, 0, 0, 0, 0]);
    expect([vm.dead, vm.tdx.state]).toEqual([false, 'build']);
    vm.tdx.finalize();
    expect(vm.tdx.state).toBe('runnable');
  });
  test('a measurement that fails: EIO', () => {
    const vm = makeBuilt();
    vm.tdx.injectStatus({ leaf: 'TDH.MR.EXTEND', status: 'TDX_OPERAND_INVALID', skip: 17 });
    expect(codeOf(() => init(vm, 0, 2, { measure: true }))).toBe('EIO');
  });
  test('FINALIZE that finds the TD busy: EBUSY, and can be called again', () => {
    const vm = makeBuilt();
    vm.tdx.injectStatus({ leaf: 'TDH.MR.FINALIZE', status: 'TDX_OPERAND_BUSY' });
    expect([codeOf(() => vm.tdx.finalize()), vm.tdx.state]).toEqual(['EBUSY', 'build']);
    vm.tdx.finalize();
    expect(vm.tdx.state).toBe('runnable');
  });
  test.each<[string, (vm: Vm) => unknown, string]>([
    ['access', (vm) => expect(vm.vcpus[0].access({ gpa: 0, kind: 'read' })).toMatchObject({ errno: 'EINVAL' }), 'none'],
    ['accept', (vm) => accept(vm, 0, 1), 'EINVAL'],
    ['run', (vm) => vm.vcpus[0].run(), 'EINVAL'],
    ['setInGuest', (vm) => vm.vcpus[0].setInGuest(true), 'EINVAL'],
    ['pre-fault', (vm) => mapPending(vm, 0, 1), 'EOPNOTSUPP'],
  ])('no vCPU runs, and nothing is pre-faulted, before FINALIZE: %s', (_, run, code) => {
    const vm = makeBuilt();
    expect(codeOf(() => run(vm))).toBe(code);
    expect([septOf(vm), leavesOf(vm, 'mirror')]).toEqual([[], []]);
    vm.tdx.finalize();
    expect(accept(vm, 0, 1)).toBe(1);
  });
});

describe('7.8 zero-step mitigation', () => {
  /** vCPU 0 has faulted six times and more at gfn 0 without getting on. */
  function stuck(localRetry: boolean): TestVm {
    const vm = makeTd(64, 8, { vcpus: 2, td: { localRetry } });
    vm.tdx.injectStatus({ leaf: 'TDH.MEM.PAGE.AUG', status: 'TDX_OPERAND_BUSY', times: 1000 });
    expect(vm.vcpus[0].access({ gpa: 10 * PAGE, kind: 'read' }).reason).toBe('retry');
    vm.tdx.injectStatus({ leaf: 'TDH.MEM.PAGE.AUG', status: 'TDX_OPERAND_BUSY', times: 0 });
    return vm;
  }
  test('KVM that tries again by itself never re-enters without progress', () => {
    const vm = stuck(true);
    expect(vm.vcpus[0].beginEnter()).toBe(false);
    expect(vm.stats().zero_step_checks).toBe(0);
  });
  test('after six faults VP.ENTER holds the tree, and AUG and SEPT.ADD of others are BUSY meanwhile', () => {
    const vm = stuck(false);
    expect(vm.vcpus[0].beginEnter()).toBe(true);
    const busy = countersMoved(vm, () =>
      expect(codeOf(() => vm.vcpus[1].preFaultMemory({ gpa: 20 * PAGE, size: PAGE }))).toBe('EINTR'),
    );
    expect(busy['TDH.MEM.PAGE.AUG']).toBe(busy.retries_busy);
    expect(busy.retries_busy).toBeGreaterThan(0);
    vm.vcpus[0].finishEnter();
    mapPending(vm, 20, 21);
    expect(septOf(vm)).toEqual(['0+8 MAPPED', '20+1 PENDING']);
  });
  test('a zap that meets it kicks the vCPU, which ends it', () => {
    const vm = stuck(false);
    expect(vm.vcpus[0].beginEnter()).toBe(true);
    const moved = countersMoved(vm, () => set(vm, 0, 1, 0));
    expect(moved).toMatchObject({ 'TDH.MEM.RANGE.BLOCK': 2, retries_busy: 1, kick_ipis: 1 });
    expect(vm.dead).toBe(false);
    expect(codeOf(() => vm.vcpus[0].finishEnter())).toBe('EINVAL');
  });
  test('an access that gets through ends the count', () => {
    const vm = stuck(false);
    accept(vm, 10, 11);
    expect(vm.vcpus[0].access({ gpa: 10 * PAGE, kind: 'read' }).reason).toBe('done');
    expect(vm.vcpus[0].beginEnter()).toBe(false);
  });
});

describe('7.9 teardown', () => {
  test('the files remove their pages while the key is live; then the key goes, and the tables last', () => {
    const vm = makeTd(600, 600, { vcpus: 4, td: { packages: 2 } });
    vm.trace();
    vm.slotFiles[0]?.close();
    vm.destroy();
    expect(callsIn(vm)).toEqual([
      'removed 600 tracked',
      'TDH.VP.FLUSH x4',
      'TDH.MNG.VPFLUSHDONE',
      'TDH.PHYMEM.CACHE.WB x2',
      'TDH.MNG.KEY.FREEID',
      // The tables of 4K, of 2M and of 1G entries, children first.
      'TDH.PHYMEM.PAGE.RECLAIM x2',
      'TDH.PHYMEM.PAGE.RECLAIM',
      'TDH.PHYMEM.PAGE.RECLAIM',
    ]);
    expect(vm.stats()).toMatchObject({ 'TDH.MEM.PAGE.REMOVE': 600, pages_cleared: 604, pages_leaked: 0 });
  });
  test('KVM_TDX_TERMINATE_VM gives the key back first: pages are reclaimed without BLOCK, TRACK and kicks', () => {
    const vm = makeTd(600, 600, { vcpus: 4 });
    inside(vm, 0, 1);
    vm.tdx.terminate();
    expect([vm.dead, vm.tdx.state]).toEqual([true, 'teardown']);
    vm.trace();
    const moved = countersMoved(vm, () => {
      vm.slotFiles[0]?.close();
      vm.destroy();
    });
    expect(moved).toMatchObject({ 'TDH.PHYMEM.PAGE.RECLAIM': 604, pages_cleared: 604, private_pages_lost: 600 });
    for (const name of SEAMCALLS) expect(moved[name], name).toBeUndefined();
    // No call but these, whatever the trace cuts them into.
    expect(callsIn(vm).filter((line) => !line.startsWith('TDH.PHYMEM.PAGE.RECLAIM'))).toEqual([]);
  });
  test('what cannot be reclaimed is leaked', () => {
    const vm = makeTd(8, 8);
    vm.tdx.terminate();
    const other = makeTd(8, 8);
    other.tdx.injectStatus({ leaf: 'TDH.PHYMEM.PAGE.RECLAIM', status: 'TDX_OPERAND_INVALID', skip: 3, times: 2 });
    other.tdx.terminate();
    for (const one of [vm, other]) one.slotFiles[0]?.close();
    expect([vm.stats().pages_leaked, other.stats().pages_leaked]).toEqual([0, 2]);
    expect(other.stats().pages_cleared).toBe(6);
  });
});

describe('7.10 huge private pages', () => {
  test('ACCEPT of 2M maps and accepts 2M leaves', () => {
    const vm = makeHugeTd(2048);
    const moved = countersMoved(vm, () => expect(accept(vm, 0, 1024, 2)).toBe(1024));
    expect(moved).toMatchObject({ 'TDH.MEM.PAGE.AUG': 2, pages_2m: 2, gmem_pages_allocated: 1024 });
    // Each 2M page is asked for, leaves the TD, and is asked for again.
    expect(moved['TDG.MEM.PAGE.ACCEPT']).toBe(4);
    expect([septOf(vm), leavesOf(vm, 'mirror'), vm.check()]).toEqual([['0+2 MAPPED L2'], ['0..1023 2M'], []]);
  });
  test('ACCEPT of 2M with ends that are none: 4K there, and the middle stays huge', () => {
    const vm = makeHugeTd(2048);
    expect(accept(vm, 100, 1600, 2)).toBe(1500);
    expect(leavesOf(vm, 'mirror')).toEqual(['100..511 4K', '512..1535 2M', '1536..1599 4K']);
    expect([septOf(vm).length, vm.check()]).toEqual([3, []]);
  });
  test('where only 4K can be mapped the guest goes down to 4K after one mismatch a region', () => {
    const vm = makeTd(1024, 0);
    const moved = countersMoved(vm, () => expect(accept(vm, 0, 1024, 2)).toBe(1024));
    expect(vm.tdx.statuses()).toMatchObject({ 'TDG.MEM.PAGE.ACCEPT': { TDX_PAGE_SIZE_MISMATCH: 2 } });
    // A region: 2M leaves the TD, 2M mismatches, 512 times 4K, of which 511 had to be mapped first.
    expect(moved['TDG.MEM.PAGE.ACCEPT']).toBe(2 * (1 + 1 + 512 + 511));
    expect([moved['TDH.MEM.PAGE.AUG'], moved.pf_taken]).toEqual([1024, 1024]);
  });
  test('ACCEPT of 4K in a PENDING 2M leaf: BLOCK, TRACK, kick, DEMOTE; the region is never huge again', () => {
    const vm = makeHugeTd(1024, {}, { vcpus: 2 });
    mapPending(vm, 0, 1024);
    expect(septOf(vm)).toEqual(['0+2 PENDING L2']);
    inside(vm, 1);
    vm.trace();
    expect(accept(vm, 7, 8)).toBe(1);
    const calls = callsIn(vm).filter((line) => !/VP.ENTER|ACCEPT/.test(line));
    expect(calls).toEqual(['TDH.MEM.RANGE.BLOCK', 'TDH.MEM.TRACK', 'kick 1', 'TDH.MEM.PAGE.DEMOTE']);
    expect(septOf(vm)).toEqual(['0+7 PENDING', '7+1 MAPPED', '8+504 PENDING', '512+1 PENDING L2']);
    expect([leavesOf(vm, 'mirror'), vm.check()]).toEqual([['0..511 4K', '512..1023 2M'], []]);
    // GUEST_INHIBIT is one way: even an empty region is mapped by 4K from here on.
    set(vm, 0, 1024, 0);
    set(vm, 0, 1024, PRIVATE);
    mapPending(vm, 0, 1024);
    expect(leavesOf(vm, 'mirror')).toEqual(['0..511 4K', '512..1023 2M']);
  });
  test('nothing is promoted: 4K leaves stay 4K when the region is whole again', () => {
    const vm = makeHugeTd(512);
    set(vm, 0, 1, 0);
    mapPending(vm, 1, 512);
    set(vm, 0, 1, PRIVATE);
    mapPending(vm, 0, 512);
    expect([leavesOf(vm, 'mirror'), vm.stats()['TDH.MEM.PAGE.PROMOTE']]).toEqual([['0..511 4K'], 0]);
  });
  test('before FINALIZE pages are 4K', () => {
    const vm = makeHugeTd(1024, { build: true });
    vm.vcpus[0].initMemRegion({ gpa: 0, pages: 1024 });
    expect([leavesOf(vm, 'mirror'), septOf(vm)]).toEqual([['0..1023 4K'], ['0+1024 MAPPED']]);
  });

  // 2048 gfns in four 2M leaves, accepted; [300, 1700) is converted to shared: both ends lie inside a leaf.
  const [START, END] = [300, 1700];
  const POLICIES: [TdOptions['zap'], Record<string, number>][] = [
    // All four leaves go: 300 gfns before the range and 348 behind it are lost with them.
    [
      'whole-leaf',
      { blocks: 4, tracks: 4, demotes: 0, removes: 4, wbinvd: 2048, zapped: 2048, outside: 648, lost: 2048 },
    ],
    // Four leaves are split, then 1400 of 4K go: each split and each removal has its own BLOCK, TRACK and kick.
    [
      'split-first',
      { blocks: 1404, tracks: 1404, demotes: 4, removes: 1400, wbinvd: 1400, zapped: 1400, outside: 0, lost: 1400 },
    ],
    // The first and the last are split; the two between go whole, with 212 and 164 of 4K.
    [
      'split-boundary',
      { blocks: 380, tracks: 380, demotes: 2, removes: 378, wbinvd: 1400, zapped: 1400, outside: 0, lost: 1400 },
    ],
  ];
  describe.each(POLICIES)('a conversion of [300, 1700) under %s', (zap, expected) => {
    test.each(['per-page', 'batched'] as const)('counts what it must, TRACK %s', (track) => {
      const vm = makeHugeTd(2048, { zap, track }, { vcpus: 4 });
      accept(vm, 0, 2048, 2);
      inside(vm, 0, 1, 2);
      const moved = countersMoved(vm, () => set(vm, START, END, 0));
      // A batch needs one TRACK for the range, and one for each split before it.
      const tracks = track === 'batched' ? expected.demotes + 1 : expected.tracks;
      expect({
        blocks: moved['TDH.MEM.RANGE.BLOCK'],
        tracks: moved['TDH.MEM.TRACK'],
        demotes: moved['TDH.MEM.PAGE.DEMOTE'] ?? 0,
        removes: moved['TDH.MEM.PAGE.REMOVE'],
        wbinvd: moved['TDH.PHYMEM.PAGE.WBINVD'],
        zapped: moved.gfns_zapped,
        outside: moved.gfns_zapped_outside_request ?? 0,
        lost: moved.private_pages_lost,
      }).toEqual({ ...expected, tracks });
      expect([moved.kicks, moved.kick_ipis, vm.tdx.epoch]).toEqual([tracks, 3 * tracks, 1 + tracks]);
      const left = zap === 'whole-leaf' ? [] : ['0..299 4K', '1700..2047 4K'];
      expect([leavesOf(vm, 'mirror'), vm.check()]).toEqual([left, []]);
      const kept = septOf(vm).every((run) => run.includes('MAPPED'));
      expect(kept).toBe(true);
    });
  });
  test.each(['split-first', 'split-boundary'] as const)(
    '%s: a split that fails leaves the range private, says EIO, and zaps nothing',
    (zap) => {
      const vm = makeHugeTd(1024, { zap });
      accept(vm, 0, 1024, 2);
      vm.tdx.injectStatus({ leaf: 'TDH.MEM.PAGE.DEMOTE', status: 'TDX_OPERAND_INVALID' });
      expect(codeOf(() => set(vm, 100, 200, 0))).toBe('EIO');
      expect([vm.dead, vm.attributesOf(150), vm.invalidate.inProgress]).toEqual([true, 8, 0]);
      expect([leavesOf(vm, 'mirror'), vm.losses().privatePagesLost]).toEqual([['0..1023 2M'], 0]);
      expect(septOf(vm)).toEqual(['0+1 BLOCKED L2', '512+1 MAPPED L2']);
      expect(codeOf(() => vm.slotFiles[0]?.punchHole(0, 4 * PAGE))).toBe('EIO');
      // Closing the file takes whole leaves: what KVM can't block once more is leaked.
      vm.slotFiles[0]?.close();
      expect([leavesOf(vm, 'mirror'), vm.stats().pages_leaked]).toEqual([[], 512]);
    },
  );
  test('DEMOTE that is interrupted is called again', () => {
    const vm = makeHugeTd(512, { zap: 'split-boundary' });
    accept(vm, 0, 512, 2);
    vm.tdx.injectStatus({ leaf: 'TDH.MEM.PAGE.DEMOTE', status: 'TDX_INTERRUPTED_RESTARTABLE', times: 3 });
    const moved = countersMoved(vm, () => set(vm, 0, 1, 0));
    expect([moved['TDH.MEM.PAGE.DEMOTE'], vm.dead, vm.check()]).toEqual([4, false, []]);
    expect(septOf(vm)).toEqual(['1+511 MAPPED']);
  });
  test('a batch of any size blocks all its leaves under one TRACK, contended or not', () => {
    const vm = makeTd(20_000, 0, { td: { track: 'batched' }, vcpus: 2 });
    accept(vm, 0, 20_000);
    inside(vm, 1);
    // A status to come, of a leaf that is never called, makes the zap go leaf by leaf.
    vm.tdx.injectStatus({ leaf: 'TDH.MEM.PAGE.PROMOTE', status: 'TDX_OPERAND_BUSY' });
    vm.trace();
    const moved = counted(vm, [...SEAMCALLS, 'kick_ipis'], () => set(vm, 0, 20_000, 0));
    expect(Object.values(moved)).toEqual([20_000, 1, 1, 20_000, 20_000, 1]);
    expect([septOf(vm), vm.dead, vm.check()]).toEqual([[], false, []]);
  });
});

describe('a TD is bytes like any VM', () => {
  /** Blocked leaves and tables, an accept and an entry under way, calls that shall fail, an inhibited region. */
  function busyTd(): TestVm {
    const vm = makeHugeTd(4096, { zap: 'split-boundary', localRetry: false }, { vcpus: 3 });
    accept(vm, 0, 1024, 2);
    accept(vm, 1030, 1040);
    mapPending(vm, 1536, 1600);
    call(vm, 'TDH.MEM.RANGE.BLOCK', 1031);
    call(vm, 'TDH.MEM.TRACK');
    inside(vm, 0);
    vm.vcpus[1].beginAccept({ gpa: 1536 * PAGE, level: 2 });
    vm.tdx.injectStatus({ leaf: 'TDH.MEM.PAGE.REMOVE', status: 'TDX_OPERAND_BUSY', skip: 3 });
    return vm;
  }
  const goOn = (vm: TestVm) => {
    const results = [
      septOf(vm),
      call(vm, 'TDH.MEM.PAGE.REMOVE', 1031),
      vm.vcpus[1].finishAccept(),
      codeOf(() => set(vm, 100, 1000, 0)),
      accept(vm, 1100, 1200),
    ];
    return { results, sept: septOf(vm), stats: vm.stats(), statuses: vm.tdx.statuses(), found: disagreements(vm) };
  };
  test('a restored copy goes on as the first did', () => {
    const vm = busyTd();
    const taken = vm.snapshot();
    const first = goOn(vm);
    const end = vm.snapshot();
    const copy = makeHugeTd(4096, { zap: 'split-boundary', localRetry: false }, { vcpus: 3 });
    copy.restore(taken);
    expect(goOn(copy)).toEqual(first);
    expect(Buffer.compare(copy.snapshot(), end)).toBe(0);
  });
  test('and into a TD with other policies it is not restored', () => {
    const taken = busyTd().snapshot();
    const other = makeHugeTd(4096, { zap: 'whole-leaf', localRetry: false }, { vcpus: 3 });
    expect(() => other.restore(taken)).toThrow(/created with other options/);
  });
  test.each([1, 7, 100])('a conversion in pieces of %i entries ends as at once', (budget) => {
    const whole = makeHugeTd(2048, { zap: 'split-boundary' }, { vcpus: 2 });
    const pieces = makeHugeTd(2048, { zap: 'split-boundary' }, { vcpus: 2 });
    for (const vm of [whole, pieces]) {
      accept(vm, 0, 1024, 2);
      accept(vm, 1024, 1900);
      inside(vm, 1);
    }
    set(whole, 100, 1500, 0);
    const pauses = [...pieces.steps({ budget }, () => set(pieces, 100, 1500, 0))].length;
    expect(pauses).toBeGreaterThan(2);
    expect(pieces.stats()).toEqual(whole.stats());
    expect([septOf(pieces), pieces.check()]).toEqual([septOf(whole), []]);
  });
  test('in what memory is left a zap leaf by leaf is refused whole, or goes through', () => {
    const vm = makeTd(8192, 0, { vcpus: 2 });
    accept(vm, 3, 4000);
    mapPending(vm, 4000, 5000);
    // Every other page of one region is written: planes in the file's tables.
    vm.vcpus[0].access({ gpa: 1025 * PAGE, kind: 'write', count: 200, stride: 2 * PAGE });
    vm.vcpus[1].beginAccept({ gpa: 4100 * PAGE });
    vm.tdx.injectStatus({ leaf: 'TDH.MEM.PAGE.PROMOTE', status: 'TDX_OPERAND_BUSY' });
    const base = vm.snapshot();
    const ends = new Set<string>();
    for (let spare = 0; spare <= 12_000; spare += spare < 60 ? 3 : 397) {
      vm.restore(base);
      vm.spareBlocks(spare);
      const before = vm.snapshot();
      const code = codeOf(() => set(vm, 5, 4900, 0));
      ends.add(code);
      if (code === 'none') expect([septOf(vm).length, vm.check()]).toEqual([2, []]);
      else expect(Buffer.compare(vm.snapshot(), before), `${spare} blocks`).toBe(0);
    }
    expect([...ends].sort()).toEqual(['ENOMEM', 'none']);
  });
  test('a refused reservation changes nothing, in every call of the module and of the guest', () => {
    const vm = busyTd();
    const base = vm.snapshot();
    const runs: Record<string, (one: TestVm) => unknown> = {
      seamcall: (one) => call(one, 'TDH.MEM.PAGE.REMOVE', 1031),
      'accept 4K': (one) => accept(one, 1100, 1110),
      'accept 2M': (one) => accept(one, 2048, 3072, 2),
      finishAccept: (one) => one.vcpus[1].finishAccept(),
      beginEnter: (one) => one.vcpus[2].beginEnter(),
      convert: (one) => set(one, 100, 1020, 0),
      punch: (one) => one.slotFiles[0]?.punchHole(100 * PAGE, 900 * PAGE),
      close: (one) => one.slotFiles[0]?.close(),
      terminate: (one) => one.tdx.terminate(),
    };
    for (const [name, run] of Object.entries(runs)) {
      vm.restore(base);
      vm.failReservation(1);
      expect(
        codeOf(() => run(vm)),
        name,
      ).toBe('ENOMEM');
      expect(Buffer.compare(vm.snapshot(), base), name).toBe(0);
      run(vm);
    }
  });
});
