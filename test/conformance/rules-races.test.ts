// Races placed by hand: a fault in two phases around an invalidation, stop points inside operations, FROZEN, the pfn swap.
//
// The schedule is the test: what begins when, and what must then retry (R-INV-4, R-ATTR-6, R-MMU-11, spec 9.2 and 9.3).

import { describe, expect, test } from 'vitest';
import type { StopPoint, Vcpu, Vm, VmType } from '../../src/index.ts';
import { makeVm, PAGE, type TestVm } from '../support/make-vm.ts';
import { counted, countersMoved, hvaOfSlot, leavesOf } from '../support/observe.ts';

const PRIVATE = 8;
const HVA = hvaOfSlot(0);
const RETRIES = ['retries_hull', 'retries_seq'] as const;
const pages = (first: number, count: number) => ({ hva: HVA + first * PAGE, length: count * PAGE });
const set = (vm: Vm, start: number, end: number, attributes: number) =>
  vm.setMemoryAttributes({ address: start * PAGE, size: (end - start) * PAGE, attributes });

const begin = (vcpu: Vcpu, gfn: number, isPrivate = false, kind: 'read' | 'write' = 'read') =>
  vcpu.beginFault({ gpa: gfn * PAGE, kind, private: isPrivate });
/** Both phases at once. */
const fault = (vm: Vm, gfn: number, isPrivate = false) => vm.vcpus[0].finishFault(begin(vm.vcpus[0], gfn, isPrivate));

describe('a fault around a notifier event over [4, 8)', () => {
  const PHASES = ['before the start', 'between', 'after the end'] as const;
  type Phase = (typeof PHASES)[number];
  // virt/kvm/kvm_main.c: kvm_mmu_invalidate_*(); arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn(), is_page_fault_stale()
  test.each<[gfn: number, begins: Phase, finishes: Phase, result: string, cause: (typeof RETRIES)[number] | null]>([
    [5, 'before the start', 'before the start', 'fixed', null],
    [5, 'before the start', 'between', 'retry', 'retries_hull'],
    [5, 'before the start', 'after the end', 'retry', 'retries_seq'],
    [5, 'between', 'between', 'retry', 'retries_hull'],
    [5, 'between', 'after the end', 'retry', 'retries_hull'],
    [5, 'after the end', 'after the end', 'fixed', null],
    [9, 'before the start', 'between', 'fixed', null],
    [9, 'before the start', 'after the end', 'retry', 'retries_seq'],
    [9, 'between', 'between', 'fixed', null],
    [9, 'between', 'after the end', 'retry', 'retries_seq'],
    [9, 'after the end', 'after the end', 'fixed', null],
  ])('for gfn %i, begun %s and finished %s: %s', (gfn, begins, finishes, result, cause) => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 16 }] });
    let id = -1;
    let answer = '';
    const act = (phase: Phase) => {
      if (phase === begins) id = begin(vm.vcpus[0], gfn);
      if (phase === finishes) answer = vm.vcpus[0].finishFault(id);
    };
    const moved = counted(vm, RETRIES, () => {
      act('before the start');
      vm.host.invalidateRangeStart(pages(4, 4));
      act('between');
      vm.host.invalidateRangeEnd(pages(4, 4));
      act('after the end');
    });
    expect(answer).toBe(result);
    expect(moved).toEqual({ retries_hull: 0, retries_seq: 0, ...(cause && { [cause]: 1 }) });
    // Fixed before the start, it is zapped again.
    const kept = result === 'fixed' && finishes !== 'before the start';
    expect(leavesOf(vm)).toEqual(kept ? [`${gfn}..${gfn} 4K`] : []);
    expect(vm.check()).toEqual([]);
  });

  // arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn(): the first check comes before the page is looked up
  test('one that begins inside the hull retries before it looks for a page', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 16 }] });
    vm.host.access({ ...pages(0, 16), write: false });
    vm.host.invalidateRangeStart(pages(4, 4));
    // A copy of the zero page would be an event of its own.
    const moved = countersMoved(vm, () => {
      const id = begin(vm.vcpus[0], 5, false, 'write');
      expect(vm.vcpus[0].finishFault(id)).toBe('retry');
    });
    expect(moved).toEqual({ retries_hull: 1 });
    vm.host.invalidateRangeEnd(pages(4, 4));
    // Without the invalidation it is one.
    expect(countersMoved(vm, () => begin(vm.vcpus[0], 5, false, 'write'))).toMatchObject({ notifier_events: 1 });
  });

  // mm/memory.c: the break of COW fires the notifier inside the lookup of the page
  test('one whose own lookup breaks COW retries once, then maps the copy', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 16 }] });
    vm.vcpus[0].access({ gpa: 5 * PAGE, kind: 'read' });
    const moved = countersMoved(vm, () => vm.vcpus[0].access({ gpa: 5 * PAGE, kind: 'write' }));
    expect(moved).toMatchObject({ pf_taken: 2, retries_seq: 1, invalidations: 1, pf_fixed: 1 });
    expect(vm.leafs()).toMatchObject([{ gfn: 5, count: 1, spte: { writable: true } }]);
  });

  // virt/kvm/kvm_main.c: kvm_mmu_invalidate_end()
  test('one begun between two events that overlap retries until both have ended', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 64 }] });
    const [first, second] = [pages(4, 4), pages(40, 4)];
    vm.host.invalidateRangeStart(first);
    vm.host.invalidateRangeStart(second);
    expect(fault(vm, 20)).toBe('retry');
    vm.host.invalidateRangeEnd(first);
    expect(fault(vm, 20)).toBe('retry');
    vm.host.invalidateRangeEnd(second);
    expect(fault(vm, 20)).toBe('fixed');
  });

  // virt/kvm/kvm_main.c: kvm_mmu_notifier_invalidate_range_start(), _end(), around munmap()
  test('one that begins inside munmap() retries; behind it there is nothing to map', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 16 }], mapped: [5] });
    const steps = vm.steps({ stopAt: ['notifier-started'] }, () => vm.host.munmap(pages(4, 4)));
    expect(steps.next().value).toEqual({ at: 'notifier-started' });
    expect(leavesOf(vm)).toEqual([]);
    expect(vm.invalidate).toMatchObject({ inProgress: 1, start: 4, end: 8 });
    expect([fault(vm, 5), fault(vm, 9)]).toEqual(['retry', 'fixed']);
    expect(vm.vcpus[0].access({ gpa: 5 * PAGE, kind: 'read' }).reason).toBe('retry');
    expect(steps.next().done).toBe(true);
    expect(vm.vcpus[0].access({ gpa: 5 * PAGE, kind: 'read' })).toMatchObject({ reason: 'error', errno: 'EFAULT' });
  });
});

describe('a fault around a conversion', () => {
  // Slot of 64 pages: no huge region lies in it, so that the hull is the request, [16, 32).
  const makeSlot = (type: VmType) => makeVm({ type, slots: [{ startGfn: 0, npages: 64, guestMemfd: true }] });
  const settle = (vm: Vm, result: string, id: number): string =>
    result === 'frozen' ? vm.vcpus[0].finishFault(id) : result;
  const through = (vm: Vm, gfn: number, isPrivate: boolean) => {
    const id = begin(vm.vcpus[0], gfn, isPrivate);
    return settle(vm, vm.vcpus[0].finishFault(id), id);
  };

  // virt/kvm/kvm_main.c: kvm_vm_set_mem_attributes(); arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn()
  const DURING: [access: string, to: string, before: string, zapped: string, stored: string, after: string][] = [
    // The attribute is compared first, then the hull.
    ['shared', 'private', 'fixed', 'retry', 'memory_fault', 'memory_fault'],
    ['private', 'private', 'memory_fault', 'memory_fault', 'retry', 'fixed'],
    ['private', 'shared', 'fixed', 'retry', 'memory_fault', 'memory_fault'],
    ['shared', 'shared', 'memory_fault', 'memory_fault', 'retry', 'fixed'],
  ];
  const rows = (['tdx', 'snp'] as VmType[]).flatMap((type) => DURING.map((row) => [type, ...row] as const));
  test.each(rows)(
    '%s, a %s access inside, to %s: %s before, %s when zapped, %s when stored, %s after',
    (type, access, to, before, zapped, stored, after) => {
      const vm = makeSlot(type);
      if (to === 'shared') set(vm, 16, 32, PRIVATE);
      const inside = () => through(vm, 20, access === 'private');
      const outside = () => through(vm, 40, false);
      expect(inside()).toBe(before);
      const convert = () => set(vm, 16, 32, to === 'private' ? PRIVATE : 0);
      const steps = vm.steps({ stopAt: ['attributes-zapped', 'attributes-stored'] }, convert);
      steps.next();
      expect(vm.invalidate).toMatchObject({ inProgress: 1, start: 16, end: 32 });
      expect([inside(), outside()]).toEqual([zapped, 'fixed']);
      steps.next();
      expect(vm.invalidate).toMatchObject({ inProgress: 1, start: 16, end: 32 });
      expect(inside()).toBe(stored);
      steps.next();
      expect(vm.invalidate.inProgress).toBe(0);
      expect(inside()).toBe(after);
      expect(vm.dead).toBe(false);
    },
  );

  // arch/x86/kvm/mmu/mmu.c: is_page_fault_stale()
  test.each<[string, number, string, string]>([
    ['inside the hull', 20, 'retry', 'retry'],
    ['outside the hull', 40, 'fixed', 'retry'],
  ])('begun before, %s (gfn %i): %s between, %s after the end', (_, gfn, between, after) => {
    for (const [stopped, expected] of [
      [true, between],
      [false, after],
    ] as const) {
      const vm = makeSlot('tdx');
      const id = begin(vm.vcpus[0], gfn);
      const steps = vm.steps({ stopAt: stopped ? ['attributes-stored'] : [] }, () => set(vm, 16, 32, PRIVATE));
      steps.next();
      expect(vm.vcpus[0].finishFault(id), stopped ? 'between' : 'after').toBe(expected);
      steps.next();
      expect(leavesOf(vm)).toEqual(expected === 'fixed' ? ['40..40 4K'] : []);
      expect(vm.check()).toEqual([]);
    }
  });

  // virt/kvm/kvm_main.c: kvm_vm_set_mem_attributes() holds slots_lock throughout
  test.each<StopPoint>(['attributes-zapped', 'attributes-stored'])('at %s no other conversion can begin', (stop) => {
    const vm = makeSlot('sw-protected');
    const steps = vm.steps({ stopAt: [stop] }, () => set(vm, 16, 32, PRIVATE));
    steps.next();
    expect(() => set(vm, 0, 64, 0)).toThrow(expect.objectContaining({ code: 'EBUSY' }));
    expect(() => vm.unmapGfnRange({ slot: 0, start: 0, end: 1 })).toThrow(expect.objectContaining({ code: 'EBUSY' }));
    expect(steps.next().done).toBe(true);
    set(vm, 0, 64, 0);
    expect(vm.invalidate.seq).toBe(2);
  });
});

describe('a fault around a punch of pages [4, 8)', () => {
  const makeSlot = () => {
    const vm = makeVm({ type: 'snp', slots: [{ startGfn: 0, npages: 16, guestMemfd: true }], mappedPrivate: [5] });
    set(vm, 0, 16, PRIVATE);
    return vm;
  };
  const punch = (vm: TestVm) => vm.slotFiles[0]?.punchHole(4 * PAGE, 4 * PAGE);

  // virt/kvm/guest_memfd.c: kvm_gmem_punch_hole(): in progress for the whole of the truncation
  test('between zap and truncation it retries, and takes no page that is about to go', () => {
    const vm = makeSlot();
    const early = begin(vm.vcpus[0], 6, true);
    const outside = begin(vm.vcpus[0], 9, true);
    const allocated = vm.stats().gmem_pages_allocated;
    const steps = vm.steps({ stopAt: ['gmem-zapped'] }, () => punch(vm));
    expect(steps.next().value).toEqual({ at: 'gmem-zapped' });
    expect(leavesOf(vm)).toEqual([]);
    expect([vm.vcpus[0].finishFault(early), fault(vm, 7, true)]).toEqual(['retry', 'retry']);
    expect(vm.vcpus[0].finishFault(outside)).toBe('fixed');
    expect(vm.stats()).toMatchObject({ gmem_pages_allocated: allocated, gmem_pages_freed: 0 });
    expect(steps.next().done).toBe(true);
    // Page 5 and the page that the early fault had taken.
    expect(vm.stats().gmem_pages_freed).toBe(2);
    expect(leavesOf(vm)).toEqual(['9..9 4K']);
    expect(vm.check()).toEqual([]);
  });

  // include/linux/kvm_host.h: mmu_invalidate_retry_gfn()
  test('begun before, finished behind it: the page it holds is gone, it must retry', () => {
    const vm = makeSlot();
    const id = begin(vm.vcpus[0], 6, true);
    punch(vm);
    expect(vm.vcpus[0].finishFault(id)).toBe('retry');
    expect(vm.check()).toEqual([]);
    expect(fault(vm, 6, true)).toBe('fixed');
    expect(vm.check()).toEqual([]);
  });
});

describe('a fault around a slot’s end', () => {
  const remove = (vm: Vm) => vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: HVA });
  const move = (vm: Vm) =>
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 64 * PAGE, memorySize: 16 * PAGE, userspaceAddr: HVA });

  // arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn(): KVM_MEMSLOT_INVALID; not covered by seq
  test.each<[string, VmType, (vm: Vm) => void]>([
    ['deleted, zap-all', 'default', remove],
    ['deleted, its own range only', 'sw-protected', remove],
    ['moved', 'default', move],
  ])('a slot that is being %s makes it retry by its INVALID flag; then it is MMIO', (_, type, change) => {
    const vm = makeVm({ type, slots: [{ startGfn: 0, npages: 16 }], mapped: [3] });
    const steps = vm.steps({ stopAt: ['slot-invalid'] }, () => change(vm));
    expect(steps.next().value).toEqual({ at: 'slot-invalid' });
    expect(leavesOf(vm)).toEqual([]);
    const moved = counted(vm, ['retries_slot_invalid', ...RETRIES, 'pf_mmio_spte_created'], () => {
      expect(fault(vm, 3)).toBe('retry');
    });
    expect(moved).toEqual({ retries_slot_invalid: 1, retries_hull: 0, retries_seq: 0, pf_mmio_spte_created: 0 });
    expect(vm.vcpus[0].access({ gpa: 3 * PAGE, kind: 'write' }).reason).toBe('retry');
    expect(steps.next().done).toBe(true);
    expect(vm.invalidate.seq).toBe(0);
    expect(vm.vcpus[0].access({ gpa: 3 * PAGE, kind: 'write' }).reason).toBe('mmio');
    if (change === move) expect(vm.vcpus[0].access({ gpa: 67 * PAGE, kind: 'write' }).reason).toBe('done');
  });

  // virt/kvm/kvm_main.c: kvm_swap_active_memslots(): synchronize_srcu_expedited()
  test('while a fault is between its phases the slots cannot change: SRCU', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 16 }] });
    const id = begin(vm.vcpus[0], 3);
    expect(() => remove(vm)).toThrow(expect.objectContaining({ code: 'EBUSY' }));
    expect(vm.vcpus[0].finishFault(id)).toBe('fixed');
    remove(vm);
    expect(leavesOf(vm)).toEqual([]);
  });

  // arch/x86/kvm/mmu/mmu.c: is_page_fault_stale(): is_obsolete_root()
  test('a fault whose root became obsolete retries, though seq stands still', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 16 }] });
    const id = begin(vm.vcpus[0], 3);
    vm.writeParameter('nx_huge_pages', true);
    expect(vm.invalidate.seq).toBe(0);
    expect(vm.vcpus[0].finishFault(id)).toBe('retry');
    expect(leavesOf(vm)).toEqual([]);
    vm.vcpus[0].run();
    expect(fault(vm, 3)).toBe('fixed');
  });
});

describe('two faults for one gfn', () => {
  // arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_map_handle_target_level()
  test.each<VmType>(['default', 'sw-protected', 'snp'])('the second finds the first’s leaf: spurious (%s)', (type) => {
    const vm = makeVm({ type, vcpus: 2, slots: [{ startGfn: 0, npages: 16, guestMemfd: type !== 'default' }] });
    vm.host.access({ ...pages(0, 16), write: true });
    // What becomes the same spte twice: a leaf that is not writable has no D that the first could differ in.
    vm.host.mprotect({ ...pages(0, 16), prot: 1 });
    const [first, second] = vm.vcpus.map((vcpu) => begin(vcpu, 3));
    expect(vm.vcpus[1].finishFault(second)).toBe('fixed');
    const moved = countersMoved(vm, () => expect(vm.vcpus[0].finishFault(first)).toBe('spurious'));
    expect(moved.pages_4k).toBeUndefined();
    expect(leavesOf(vm)).toEqual(['3..3 4K']);
  });
});

describe('FROZEN on a mirror root', () => {
  const makeTd = () => {
    const vm = makeVm({ type: 'tdx', vcpus: 2, slots: [{ startGfn: 0, npages: 16, guestMemfd: true }] });
    set(vm, 0, 8, PRIVATE);
    return vm;
  };

  // arch/x86/kvm/mmu/tdp_mmu.c: set_external_spte_present(), under mmu_lock for reading
  test('no operation that takes mmu_lock for writing comes between FROZEN and the leaf', () => {
    const vm = makeTd();
    const id = begin(vm.vcpus[0], 3, true);
    expect(vm.vcpus[0].finishFault(id)).toBe('frozen');
    const writers = [
      () => set(vm, 0, 8, 0),
      () => vm.slotFiles[0]?.punchHole(0, 16 * PAGE),
      () => vm.host.invalidateRangeStart(pages(0, 16)),
      () => vm.unmapGfnRange({ slot: 0, start: 3, end: 4, onlyPrivate: true }),
    ];
    for (const writer of writers) expect(writer).toThrow(expect.objectContaining({ code: 'EBUSY' }));
    // Other faults do: they take it for reading.
    expect(fault(vm, 9)).toBe('fixed');
    expect(vm.vcpus[0].finishFault(id)).toBe('fixed');
    for (const writer of writers) writer();
    expect(leavesOf(vm, 'mirror')).toEqual([]);
    expect(vm.check()).toEqual([]);
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: kvm_tdp_mmu_map(): is_frozen_spte()
  test('accesses of other vCPUs to that gfn spin, and go on once it has its leaf', () => {
    const vm = makeTd();
    const id = begin(vm.vcpus[0], 3, true);
    vm.vcpus[0].finishFault(id);
    expect(vm.vcpus[1].access({ gpa: 3 * PAGE, kind: 'read', private: true }).reason).toBe('retry');
    expect(vm.stats().retries_frozen).toBeGreaterThan(0);
    vm.vcpus[0].finishFault(id);
    expect(vm.vcpus[1].accept({ gpa: 3 * PAGE, size: PAGE })).toBe(1);
    expect(vm.vcpus[1].access({ gpa: 3 * PAGE, kind: 'read', private: true }).reason).toBe('done');
  });

  // arch/x86/kvm/mmu/mmu.c: is_page_fault_stale()
  test('a private fault that went stale never freezes', () => {
    const vm = makeTd();
    const id = begin(vm.vcpus[0], 3, true);
    set(vm, 0, 8, 0);
    expect(vm.vcpus[0].finishFault(id)).toBe('retry');
    expect(vm.walk(3 * PAGE)).toEqual(vm.walk(4 * PAGE));
    expect(vm.stats()).toMatchObject({ 'TDH.MEM.PAGE.AUG': 0, 'TDH.MEM.SEPT.ADD': 0 });
  });
});

describe('a present leaf never changes its pfn', () => {
  /** An SNP guest under the RFC: the vendor callback zapped nothing when gfn 3 became private. */
  const makeStale = () => {
    const vm = makeVm({ type: 'snp', slots: [{ startGfn: 0, npages: 16, guestMemfd: true }], mapped: [3] });
    set(vm, 3, 4, PRIVATE);
    expect(vm.losses().staleSharedLeaves).toBe(1);
    expect(vm.check()).toMatchObject([{ kind: 'kind-mismatch', gfn: 3, count: 1 }]);
    return vm;
  };
  // arch/x86/kvm/mmu/tdp_mmu.c: handle_changed_spte(): BUG() on a pfn swap
  test.each<[string, (vm: Vm) => unknown]>([
    ['a private fault in two phases', (vm) => vm.vcpus[0].finishFault(begin(vm.vcpus[0], 3, true))],
    ['KVM_PRE_FAULT_MEMORY', (vm) => vm.vcpus[0].preFaultMemory({ gpa: 3 * PAGE, size: PAGE })],
  ])('%s over the shared leaf: the VM is dead with EIO, nothing changed', (_, touch) => {
    const vm = makeStale();
    const leafs = vm.leafs();
    const before = vm.stats();
    vm.trace();
    expect(() => touch(vm)).toThrow(expect.objectContaining({ code: 'EIO' }));
    expect(vm.dead).toBe(true);
    // The fault had prepared the page by then: the RMP is no page table.
    expect(vm.trace().filter(({ name }) => name !== 'rmp_make_private')).toEqual([]);
    expect(vm.leafs()).toEqual(leafs);
    const { pages_4k, tables, gfns_zapped, remote_tlb_flush_requests } = vm.stats();
    expect({ pages_4k, tables, gfns_zapped, remote_tlb_flush_requests }).toEqual({
      pages_4k: before.pages_4k,
      tables: before.tables,
      gfns_zapped: before.gfns_zapped,
      remote_tlb_flush_requests: before.remote_tlb_flush_requests,
    });
    for (const call of [() => set(vm, 0, 1, PRIVATE), () => vm.vcpus[0].run(), () => fault(vm, 4)])
      expect(call).toThrow(expect.objectContaining({ code: 'EIO' }));
  });

  // What the leaf allows takes no fault here: it is the RMP that would stop a private access to a shared page.
  test('a private write that faults over a read-only shared leaf: the same', () => {
    const vm = makeVm({ type: 'snp', slots: [{ startGfn: 0, npages: 16, guestMemfd: true }] });
    vm.vcpus[0].access({ gpa: 3 * PAGE, kind: 'read', private: false });
    set(vm, 3, 4, PRIVATE);
    const leafs = vm.leafs();
    expect(leafs).toMatchObject([{ gfn: 3, spte: { writable: false, private: false } }]);
    expect(vm.vcpus[0].access({ gpa: 3 * PAGE, kind: 'write', private: true })).toMatchObject({
      reason: 'error',
      errno: 'EIO',
    });
    expect(vm.dead).toBe(true);
    expect(vm.leafs()).toEqual(leafs);
  });

  test('once the stale leaf is zapped the private access maps the private page', () => {
    const vm = makeStale();
    vm.host.madvise({ ...pages(3, 1), advice: 'DONTNEED' });
    expect(vm.check()).toEqual([]);
    expect(vm.vcpus[0].access({ gpa: 3 * PAGE, kind: 'write', private: true }).reason).toBe('done');
    expect(vm.leafs()).toMatchObject([{ gfn: 3, count: 1, spte: { private: true } }]);
    expect(vm.dead).toBe(false);
  });
});
