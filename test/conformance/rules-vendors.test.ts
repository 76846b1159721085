// Rules of TDX and SNP (R-TDX-*, R-SNP-*) that the page tables and their counters can show.
//
// Not here, as they are about what the API does not offer:
//   R-TDX-2   before FINALIZE: a TD is finalized as it is created
//   R-TDX-3   REMOVE before all vCPUs left their epoch      the SEAMCALL-level module
//   R-TDX-4   two TRACKs without an exit                    the SEAMCALL-level module
//   R-TDX-9   BUSY on AUG, SEPT.ADD, BLOCK, TRACK, REMOVE   the SEAMCALL-level module
//   R-TDX-10  freeing a mirror table while the HKID is assigned   the SEAMCALL-level module
//   R-TDX-12  MapGPA in chunks of 2 MiB                     the SEAMCALL-level module
//
// R-SNP-1 to R-SNP-3, and R-SNP-4 by the RMP, are in rules-snp.test.ts.

import { describe, expect, test } from 'vitest';
import type { CreateVmOptions, KernelProfile, Vm } from '../../src/index.ts';
import type { AnyEvent } from '../support/events.ts';
import { makeVm, PAGE, type TestVm } from '../support/make-vm.ts';
import { counted, countersMoved, hvaOfSlot, leavesOf } from '../support/observe.ts';

const PRIVATE = 8;
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
const accept = (vm: Vm, start: number, end: number) =>
  vm.vcpus[0].accept({ gpa: start * PAGE, size: (end - start) * PAGE });

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

describe('TDX', () => {
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
});

describe('SNP', () => {
  // arch/x86/kvm/svm/sev.c: the pfn stays assigned and validated, a re-fault maps the same page
  test.each<KernelProfile>(['rfc-v4', 'linux-6.12', 'linux-6.16'])(
    'R-SNP-4 zap and re-fault keep content (%s)',
    (kernel) => {
      const vm = makeVm({
        type: 'snp',
        kernel,
        slots: [{ startGfn: 0, npages: 16, guestMemfd: true }],
        mappedPrivate: [4, 5, 6, 7],
      });
      expect(vm.unmapGfnRange({ slot: 0, start: 0, end: 16, attrFilter: 3 })).toBe(true);
      expect(leavesOf(vm)).toEqual([]);
      const moved = countersMoved(vm, () => vm.vcpus[0].access({ gpa: 4 * PAGE, kind: 'read', count: 4 }));
      expect(leavesOf(vm)).toEqual(['4..7 4K']);
      expect(moved.gmem_pages_allocated).toBeUndefined();
      // Even over to-shared and back, until guest_memfd is punched: then exactly these pages are lost.
      set(vm, 0, 16, 0);
      set(vm, 0, 16, PRIVATE);
      expect(vm.losses()).toMatchObject({ privatePagesLost: 0, pagesToAccept: 0 });
      const punched = countersMoved(vm, () => vm.slotFiles[0]?.punchHole(0, 16 * PAGE));
      expect(punched).toMatchObject({ private_pages_lost: 4, gmem_pages_freed: 4 });
      for (const name of SEAMCALLS) expect(vm.stats()[name], name).toBe(0);
    },
  );
});
