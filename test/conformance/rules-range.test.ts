// Rules of the notifier's path: from hva ranges to gfn ranges (R-HVA-*), and the accounting that makes faults retry (R-INV-*).
//
// R-HVA-4's warning and R-INV-5's kernel interleaving cannot be observed: the first is tested by what it leaves alone, the
// second over a state that is written into a snapshot.

import { describe, expect, test } from 'vitest';
import type { Vm } from '../../src/index.ts';
import { expectTrace, makeVm, PAGE } from '../support/make-vm.ts';
import { counted, eventsOf, hvaOfSlot, leavesOf, refusalOf } from '../support/observe.ts';

const HVA = hvaOfSlot(0);
const pages = (first: number, count: number) => ({ hva: HVA + first * PAGE, length: count * PAGE });
const range = (from: number, to: number) => Array.from({ length: to - from }, (_, k) => from + k);

/** A fault in two phases with `between` in between. */
function faultAround(vm: Vm, gfn: number, between: () => void, vcpu = 0): string {
  const fault = vm.vcpus[vcpu].beginFault({ gpa: gfn * PAGE, kind: 'read' });
  between();
  return vm.vcpus[vcpu].finishFault(fault);
}
/** Whether a fault that begins now has to retry. */
const retriesNow = (vm: Vm, gfn: number) => faultAround(vm, gfn, () => {}) === 'retry';

describe('from hva ranges to gfn ranges', () => {
  // virt/kvm/kvm_main.c: __kvm_handle_hva_range()
  test.each([
    ['below the slot', pages(-16, 16)],
    ['behind the slot', pages(64, 16)],
    ['in another process area altogether', { hva: 0x1000, length: PAGE }],
  ])('R-HVA-1 an invalidate that meets no slot (%s) leaves lock, inv, sptes and flush count unchanged', (_, hvas) => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 64 }], mapped: range(0, 64) });
    const before = vm.invalidate;
    const names = ['lock_sections', 'invalidations', 'remote_tlb_flush_requests', 'gfns_zapped'] as const;
    const moved = counted(vm, names, () => {
      expect(vm.host.invalidateRangeStart(hvas)).toBe(false);
      expect(vm.invalidate).toEqual(before);
      vm.host.invalidateRangeEnd(hvas);
    });
    expect(moved).toEqual({ lock_sections: 0, invalidations: 0, remote_tlb_flush_requests: 0, gfns_zapped: 0 });
    expect(vm.invalidate).toEqual(before);
    expect(leavesOf(vm)).toEqual(['0..63 4K']);
    expectTrace(vm, []);
  });

  // virt/kvm/kvm_main.c: __kvm_handle_hva_range()
  test.each([
    // From and to in bytes, relative to the slot's userspace address; the gfns that any byte touches.
    [0x1800, 0x2001, 1, 3],
    [0x1fff, 0x2000, 1, 2],
    [0x1000, 0x2000, 1, 2],
    [0x0, 0x1, 0, 1],
    [-0x5000, 0x801, 0, 1],
    [0x7fff, 0x20000, 7, 8],
  ])('R-HVA-2 bytes [%i, %i) of a slot of 8 pages are gfns [base + %i, base + %i)', (from, to, first, end) => {
    const base = 0x100;
    const vm = makeVm({ slots: [{ startGfn: base, npages: 8 }], mapped: range(base, base + 8) });
    const at = HVA + base * PAGE;
    vm.host.invalidateRangeStart({ hva: at + from, length: to - from });
    expect(eventsOf(vm, 'unmap_gfn_range')).toMatchObject([{ start: base + first, end: base + end }]);
    expect(vm.invalidate).toMatchObject({ start: base + first, end: base + end });
    const kept = range(base, base + 8).filter((gfn) => gfn < base + first || gfn >= base + end);
    expect(vm.leafs().flatMap(({ gfn, count }) => range(gfn, gfn + count))).toEqual(kept);
  });

  // virt/kvm/kvm_main.c: __kvm_handle_hva_range()
  test('R-HVA-3 two slots that alias one hva range are zapped with one lock hold, one begin and one flush', () => {
    const vm = makeVm({ memory: 16 * PAGE, slots: [{ startGfn: 0, npages: 8 }] });
    vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0x100 * PAGE, memorySize: 8 * PAGE, userspaceAddr: HVA });
    for (const gfn of [2, 3, 0x102, 0x103]) vm.vcpus[0].access({ gpa: gfn * PAGE, kind: 'write' });
    vm.trace();
    const names = ['lock_sections', 'invalidations', 'remote_tlb_flush_requests', 'gfns_zapped'] as const;
    const moved = counted(vm, names, () => vm.host.invalidateRangeStart(pages(2, 2)));
    expect(moved).toEqual({ lock_sections: 1, invalidations: 1, remote_tlb_flush_requests: 1, gfns_zapped: 4 });
    expect(vm.invalidate).toMatchObject({ inProgress: 1, start: 2, end: 0x104 });
    expectTrace(vm, [
      'begin',
      'add [0x2, 0x4)',
      'unmap slot 0 [0x2, 0x4)',
      'zap 0x2 4K',
      'zap 0x3 4K',
      'add [0x102, 0x104)',
      'unmap slot 1 [0x102, 0x104)',
      'zap 0x102 4K',
      'zap 0x103 4K',
      'flush',
    ]);
    expect(leavesOf(vm)).toEqual([]);
  });

  // virt/kvm/kvm_main.c: __kvm_handle_hva_range(): address space 0, then 1; in each by ascending hva
  test('R-HVA-3 so are slots of two address spaces, 0 before 1', () => {
    const vm = makeVm({ memory: 16 * PAGE, slots: [{ startGfn: 0, npages: 8 }] });
    const alias = { guestPhysAddr: 0, memorySize: 8 * PAGE, userspaceAddr: HVA };
    vm.setUserMemoryRegion({ slot: (1 << 16) | 5, ...alias });
    vm.vcpus[0].access({ gpa: 2 * PAGE, kind: 'write' });
    vm.vcpus[0].enterSmm();
    vm.vcpus[0].access({ gpa: 2 * PAGE, kind: 'write' });
    vm.vcpus[0].access({ gpa: 3 * PAGE, kind: 'write' });
    vm.trace();
    const names = ['lock_sections', 'invalidations', 'remote_tlb_flush_requests', 'gfns_zapped'] as const;
    const moved = counted(vm, names, () => vm.host.invalidateRangeStart(pages(2, 1)));
    expect(moved).toEqual({ lock_sections: 1, invalidations: 1, remote_tlb_flush_requests: 1, gfns_zapped: 2 });
    const ranges = eventsOf(vm, 'unmap_gfn_range').map(({ asId, slot }) => [asId, slot]);
    expect(ranges).toEqual([
      [0, 0],
      [1, 5],
    ]);
    expect([leavesOf(vm, 'direct', 0), leavesOf(vm, 'direct', 1)]).toEqual([[], ['3..3 4K']]);
    // A range of one slot is one of its address space: the other's root is left alone.
    vm.host.invalidateRangeEnd(pages(2, 1));
    vm.vcpus[0].leaveSmm();
    vm.vcpus[0].access({ gpa: 3 * PAGE, kind: 'write' });
    expect(vm.unmapGfnRange({ slot: 0, start: 0, end: 8 })).toBe(true);
    expect([leavesOf(vm, 'direct', 0), leavesOf(vm, 'direct', 1)]).toEqual([[], ['3..3 4K']]);
  });

  // virt/kvm/kvm_main.c: __kvm_handle_hva_range()
  test.each([
    ['is empty', 0n],
    ['ends before it starts', 2n ** 64n - 0x4000n],
  ])('R-HVA-4 a range that %s is ignored', (_, length) => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 16 }], mapped: [8] });
    const hvas = { hva: HVA + 8 * PAGE, length };
    const names = ['lock_sections', 'invalidations', 'remote_tlb_flush_requests', 'gfns_zapped'] as const;
    const moved = counted(vm, names, () => {
      expect(vm.host.invalidateRangeStart(hvas)).toBe(false);
      vm.host.invalidateRangeEnd(hvas);
    });
    expect(moved).toEqual({ lock_sections: 0, invalidations: 0, remote_tlb_flush_requests: 0, gfns_zapped: 0 });
    expect(vm.invalidate).toMatchObject({ inProgress: 0, seq: 0 });
    expect(leavesOf(vm)).toEqual(['8..8 4K']);
  });
});

describe('invalidations in progress', () => {
  // virt/kvm/kvm_main.c: kvm_mmu_invalidate_begin(), kvm_mmu_invalidate_end()
  test('R-INV-1 a start adds one in progress and keeps seq, its end takes it and adds one to seq', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 16 }] });
    expect(vm.invalidate).toEqual({ inProgress: 0, seq: 0, start: null, end: null });
    vm.host.invalidateRangeStart(pages(4, 4));
    expect(vm.invalidate).toEqual({ inProgress: 1, seq: 0, start: 4, end: 8 });
    vm.host.invalidateRangeEnd(pages(4, 4));
    expect(vm.invalidate).toMatchObject({ inProgress: 0, seq: 1 });
    expect(eventsOf(vm, 'inv_begin', 'inv_add', 'inv_end')).toEqual([
      { name: 'inv_begin', inProgress: 0, seq: 0 },
      { name: 'inv_add', start: 4, end: 8 },
      { name: 'inv_end', seq: 0, inProgress: 1, start: 4, end: 8 },
    ]);
  });

  // virt/kvm/kvm_main.c: kvm_mmu_invalidate_range_add()
  test('R-INV-2 nested starts publish one hull, which the first end leaves as it is', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 2000 }] });
    vm.host.invalidateRangeStart(pages(10, 10));
    expect(retriesNow(vm, 500)).toBe(false);
    vm.host.invalidateRangeStart(pages(1000, 10));
    expect(vm.invalidate).toEqual({ inProgress: 2, seq: 0, start: 10, end: 1010 });
    vm.host.invalidateRangeEnd(pages(10, 10));
    expect(vm.invalidate).toEqual({ inProgress: 1, seq: 1, start: 10, end: 1010 });
    expect([9, 10, 500, 1009, 1010].map((gfn) => retriesNow(vm, gfn))).toEqual([false, true, true, true, false]);
    expect(vm.vcpus[0].access({ gpa: 500 * PAGE, kind: 'write' }).reason).toBe('retry');
    vm.host.invalidateRangeEnd(pages(1000, 10));
    expect(vm.invalidate).toMatchObject({ inProgress: 0, seq: 2 });
    expect(retriesNow(vm, 500)).toBe(false);
  });

  // virt/kvm/kvm_main.c: kvm_mmu_invalidate_begin()
  test('R-INV-3 only a begin from 0 resets the hull', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 2000 }] });
    vm.host.invalidateRangeStart(pages(10, 10));
    vm.host.invalidateRangeStart(pages(1000, 10));
    vm.host.invalidateRangeEnd(pages(1000, 10));
    vm.host.invalidateRangeStart(pages(500, 1));
    expect(vm.invalidate).toMatchObject({ inProgress: 2, start: 10, end: 1010 });
    vm.host.invalidateRangeEnd(pages(500, 1));
    vm.host.invalidateRangeEnd(pages(10, 10));
    expect(vm.invalidate).toMatchObject({ inProgress: 0, start: 10, end: 1010 });
    vm.host.invalidateRangeStart(pages(700, 1));
    expect(vm.invalidate).toEqual({ inProgress: 1, seq: 3, start: 700, end: 701 });
  });

  // include/linux/kvm_host.h: mmu_invalidate_retry_gfn()
  test.each([
    ['in the range', 12],
    ['outside every range', 1500],
  ])('R-INV-4 a fault %s that took its snapshot before an end retries once', (_, gfn) => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 2000 }] });
    const moved = counted(vm, ['retries_hull', 'retries_seq', 'pages_4k'], () => {
      const first = faultAround(vm, gfn, () => {
        vm.host.invalidateRangeStart(pages(10, 10));
        vm.host.invalidateRangeEnd(pages(10, 10));
      });
      expect(first).toBe('retry');
    });
    expect(moved).toEqual({ retries_hull: 0, retries_seq: 1, pages_4k: 0 });
    expect(vm.retryGfn(0, gfn)).toBe(true);
    expect(vm.retryGfnUnsafe(0, gfn)).toBe(true);
    expect(vm.retry(0)).toBe(true);
    expect(faultAround(vm, gfn, () => {})).toBe('fixed');
  });

  // include/linux/kvm_host.h: mmu_invalidate_retry_gfn(), mmu_invalidate_retry_gfn_unsafe()
  test('R-INV-5 with a hull that is INVALID the unsafe predicate does not retry on the range, the locked one does', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 16 }] });
    vm.host.invalidateRangeStart(pages(5, 6));
    expect([vm.retryGfn(0, 7), vm.retryGfnUnsafe(0, 7)]).toEqual([true, true]);
    vm.restore(withHullInvalid(vm.snapshot(), 5n, 11n));
    expect(vm.invalidate).toEqual({ inProgress: 1, seq: 0, start: null, end: null });
    for (const gfn of [4, 7, 1000]) {
      expect(vm.retryGfnUnsafe(0, gfn)).toBe(false);
      expect(vm.retryGfn(0, gfn)).toBe(true);
      expect(vm.retryGfnUnsafe(1, gfn)).toBe(true);
    }
  });

  // virt/kvm/kvm_main.c: kvm_swap_active_memslots()
  test('R-INV-6 a memslot swap waits while any notifier start lacks its end', () => {
    const vm = makeVm({ memory: 32 * PAGE, slots: [{ startGfn: 0, npages: 16 }], mapped: [3] });
    const create = () =>
      vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 16 * PAGE, memorySize: 16 * PAGE, userspaceAddr: 0x40000000 });
    const move = () =>
      vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 64 * PAGE, memorySize: 16 * PAGE, userspaceAddr: HVA });
    const remove = () => vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: HVA });
    // Of the two starts, one meets no slot: it counts all the same.
    vm.host.invalidateRangeStart(pages(8, 1));
    vm.host.invalidateRangeStart({ hva: 0x1000, length: PAGE });
    expect([create, move, remove].map((call) => refusalOf(vm, call))).toEqual(['EBUSY', 'EBUSY', 'EBUSY']);
    vm.host.invalidateRangeEnd(pages(8, 1));
    expect([create, move, remove].map((call) => refusalOf(vm, call))).toEqual(['EBUSY', 'EBUSY', 'EBUSY']);
    vm.host.invalidateRangeEnd({ hva: 0x1000, length: PAGE });
    expect([create, move].map((call) => refusalOf(vm, call))).toEqual(['none', 'none']);
  });
});

/** A snapshot in which the hull [start, end) reads INVALID, as between a begin and its first add. */
function withHullInvalid(snapshot: Uint8Array, start: bigint, end: bigint): Uint8Array {
  const copy = snapshot.slice();
  const view = new DataView(copy.buffer);
  const places = [];
  for (let at = 0; at + 16 <= copy.length; at += 8) {
    if (view.getBigUint64(at, true) === start && view.getBigUint64(at + 8, true) === end) places.push(at);
  }
  // The first: later ones are the trace's.
  view.setBigUint64(places[0], 2n ** 64n - 1n, true);
  view.setBigUint64(places[0] + 8, 2n ** 64n - 1n, true);
  return copy;
}
