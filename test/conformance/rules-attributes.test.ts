// Rules of KVM_SET_MEMORY_ATTRIBUTES (R-ATTR-*): what is refused, what is a no-op, what is zapped, what is mixed.

import { describe, expect, test } from 'vitest';
import type { CreateVmOptions, KernelProfile, Vm, VmType } from '../../src/index.ts';
import { expectTrace, makeVm, PAGE } from '../support/make-vm.ts';
import { counted, countersMoved, eventsOf, leavesOf, refusalOf } from '../support/observe.ts';

const PRIVATE = 8;
const M2 = 512;
const G1 = 262_144;

const set = (vm: Vm, start: number, end: number, attributes: number) =>
  vm.setMemoryAttributes({ address: start * PAGE, size: (end - start) * PAGE, attributes });
/** Which of these 2M regions of slot 0 are mixed. */
const mixed2m = (vm: Vm, ...regions: number[]) => regions.map((region) => vm.isMixed(0, 2, region * M2));
const mixed1g = (vm: Vm, ...regions: number[]) => regions.map((region) => vm.isMixed(0, 3, region * G1));

/** A software-protected VM with one slot of `npages` and no host memory behind it, unless `options` say otherwise. */
const makeSlot = (npages: number, options: Partial<CreateVmOptions> = {}, startGfn = 0) =>
  makeVm({
    type: 'sw-protected',
    memory: 2 ** 32,
    ...options,
    slots: [{ startGfn, npages, guestMemfd: true, kind: null }],
  });

describe('what is refused, and what does nothing', () => {
  // virt/kvm/kvm_main.c: kvm_vm_ioctl_set_mem_attributes()
  test.each<
    [string, { address?: number | bigint; size?: number | bigint; attributes?: number | bigint; flags?: number }]
  >([
    ['flags are not 0', { flags: 1 }],
    ['an unknown attribute', { attributes: 1 }],
    ['an unknown attribute beside PRIVATE', { attributes: 9 }],
    ['an attribute above 32 bits', { attributes: 2n ** 35n + 8n }],
    ['size 0', { size: 0 }],
    ['address + size wraps', { address: 2n ** 64n - 4096n, size: 8192 }],
    ['address + size is 2^64', { address: 2n ** 64n - 4096n, size: 4096 }],
    ['an unaligned address', { address: 0x800 }],
    ['an unaligned size', { size: 0x1800 }],
  ])('R-ATTR-1 %s fails with EINVAL and leaves everything unchanged', (_, wrong) => {
    const vm = makeVm({
      type: 'sw-protected',
      slots: [{ startGfn: 0, npages: 16, guestMemfd: true }],
      mapped: [0, 1],
      mappedPrivate: [2],
    });
    const call = () => vm.setMemoryAttributes({ address: 0, size: 4 * PAGE, attributes: PRIVATE, ...wrong });
    expect(refusalOf(vm, call)).toBe('EINVAL');
    expectTrace(vm, []);
  });

  // virt/kvm/kvm_main.c: kvm_vm_set_mem_attributes()
  test.each(['sw-protected', 'snp', 'tdx'] as VmType[])(
    'R-ATTR-2 setting a range that is uniform already returns and changes nothing, seq too (%s)',
    (type) => {
      const vm = makeVm({ type, slots: [{ startGfn: 0, npages: 16, guestMemfd: true }], mappedPrivate: [2, 3, 4, 5] });
      const before = vm.snapshot();
      const { seq } = vm.invalidate;
      set(vm, 2, 6, PRIVATE);
      set(vm, 8, 12, 0);
      expect(vm.invalidate.seq).toBe(seq);
      expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
      expectTrace(vm, []);
    },
  );

  // virt/kvm/kvm_main.c: kvm_handle_gfn_range()
  test('R-ATTR-3 attributes where no slot exists update only the map; seq is unchanged', () => {
    const vm = makeSlot(16);
    const moved = countersMoved(vm, () => set(vm, 0x1000, 0x1040, PRIVATE));
    // Two xarray operations a gfn, and nothing else.
    expect(moved).toEqual({ attribute_xarray_ops: 128 });
    expect([0xfff, 0x1000, 0x103f, 0x1040].map((gfn) => vm.attributesOf(gfn))).toEqual([0, 8, 8, 0]);
    expect(vm.invalidate).toEqual({ inProgress: 0, seq: 0, start: null, end: null });
    expectTrace(vm, []);
  });

  // virt/kvm/kvm_main.c: kvm_vm_ioctl_set_mem_attributes(): no check against memslots or the largest gpa
  test('R-ATTR-3 that holds up to the last gfn whose end does not wrap', () => {
    const vm = makeSlot(16);
    const last = 2 ** 52 - 2;
    vm.setMemoryAttributes({ address: 2n ** 64n - 8192n, size: PAGE, attributes: PRIVATE });
    expect([last - 1, last].map((gfn) => vm.attributesOf(gfn))).toEqual([0, 8]);
    vm.setMemoryAttributes({ address: 0x10_000, size: 2n ** 64n - 0x12_000n, attributes: PRIVATE });
    expect([15, 16, 2 ** 40, last - 1, last].map((gfn) => vm.attributesOf(gfn))).toEqual([0, 8, 8, 8, 8]);
    expect(vm.invalidate.seq).toBe(0);
  });

  // virt/kvm/kvm_main.c: kvm_vm_set_mem_attributes()
  test.each([1, 2, 3])('R-ATTR-4 seq grows by exactly one a call over %i slots', (slots) => {
    const vm = makeVm({
      type: 'sw-protected',
      slots: Array.from({ length: slots }, (_, id) => ({ startGfn: id * 32, npages: 16, guestMemfd: true })),
      mapped: Array.from({ length: slots }, (_, id) => id * 32),
    });
    const names = ['invalidations', 'lock_sections', 'remote_tlb_flush_requests', 'gfns_zapped'] as const;
    const moved = counted(vm, names, () => set(vm, 0, 128, PRIVATE));
    expect(moved).toEqual({ invalidations: 1, lock_sections: 2, remote_tlb_flush_requests: 1, gfns_zapped: slots });
    expect(vm.invalidate).toMatchObject({ inProgress: 0, seq: 1, start: 0, end: (slots - 1) * 32 + 16 });
    // One begin; per slot add, zap; one flush; the end before the first post hook.
    const perSlot = Array.from({ length: slots }, (_, id) => {
      const range = `[0x${(id * 32).toString(16)}, 0x${(id * 32 + 16).toString(16)})`;
      return { range, zaps: [`add ${range}`, `unmap slot ${id} ${range}`, `zap 0x${(id * 32).toString(16)} 4K`] };
    });
    expectTrace(vm, [
      'begin',
      ...perSlot.flatMap(({ zaps }) => zaps),
      'flush',
      'end seq 1',
      ...perSlot.map(({ range }) => `store ${range} private`),
    ]);
  });

  // virt/kvm/kvm_main.c: kvm_supported_mem_attributes()
  test('R-ATTR-5 a VM without private memory refuses PRIVATE with EINVAL and takes 0 as a no-op', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 16 }], mapped: [0] });
    expect(refusalOf(vm, () => set(vm, 0, 16, PRIVATE))).toBe('EINVAL');
    const before = vm.snapshot();
    set(vm, 0, 16, 0);
    expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
  });
});

describe('what a conversion does to mappings', () => {
  // virt/kvm/kvm_main.c: kvm_vm_set_mem_attributes(): zap, store, end
  test('R-ATTR-6 between pre and post a fault in the hull retries, though its attribute is stored already', () => {
    const vm = makeVm({ type: 'sw-protected', slots: [{ startGfn: 0, npages: 2048, guestMemfd: true }] });
    const fault = (gfn: number) => {
      const id = vm.vcpus[0].beginFault({ gpa: gfn * PAGE, kind: 'read' });
      return vm.vcpus[0].finishFault(id);
    };
    const steps = vm.steps({ stopAt: ['attributes-zapped', 'attributes-stored'] }, () => set(vm, 600, 700, PRIVATE));
    expect(steps.next().value).toEqual({ at: 'attributes-zapped' });
    expect([600, 699].map((gfn) => vm.attributesOf(gfn))).toEqual([0, 0]);
    // The hull is the whole of the 2M region that becomes mixed.
    expect(vm.invalidate).toMatchObject({ inProgress: 1, seq: 0, start: 512, end: 1024 });
    expect([511, 512, 600, 1023, 1024].map(fault)).toEqual(['fixed', 'retry', 'retry', 'retry', 'fixed']);
    expect(steps.next().value).toEqual({ at: 'attributes-stored' });
    expect([600, 699].map((gfn) => vm.attributesOf(gfn))).toEqual([8, 8]);
    expect([512, 600, 1023].map(fault)).toEqual(['retry', 'retry', 'retry']);
    expect(steps.next().done).toBe(true);
    expect(vm.invalidate).toMatchObject({ inProgress: 0, seq: 1 });
    expect([512, 600, 1023].map(fault)).toEqual(['fixed', 'fixed', 'fixed']);
    expect(vm.check()).toEqual([]);
  });

  // arch/x86/kvm/mmu/mmu.c: kvm_arch_pre_set_memory_attributes()
  test.each<[string, Partial<CreateVmOptions>]>([
    ['rfc-v4', {}],
    ['linux-6.16', { kernel: 'linux-6.16' }],
  ])('R-ATTR-7 TD, %s: a range that is partly private set to private keeps private leafs and content', (_, options) => {
    const vm = makeVm({
      type: 'tdx',
      ...options,
      slots: [{ startGfn: 0, npages: 16, guestMemfd: true }],
      mapped: [0, 1, 2, 3],
      mappedPrivate: [4, 5, 6, 7],
    });
    const moved = countersMoved(vm, () => set(vm, 0, 8, PRIVATE));
    expect(leavesOf(vm, 'direct')).toEqual([]);
    expect(leavesOf(vm, 'mirror')).toEqual(['4..7 4K']);
    expect(vm.tdx.leafs().every(({ state }) => state === 'MAPPED')).toBe(true);
    expect(moved).toMatchObject({ leafs_zapped_direct_4k: 4, remote_tlb_flush_requests: 1 });
    expect(moved.private_pages_lost).toBeUndefined();
    expect(moved['TDH.MEM.PAGE.REMOVE']).toBeUndefined();
    // Nothing to accept again: the pages are touched without a fault.
    const touched = countersMoved(vm, () => vm.vcpus[0].access({ gpa: 4 * PAGE, kind: 'write', size: 4 * PAGE }));
    expect(touched.pf_taken).toBeUndefined();
    expect(vm.check()).toEqual([]);
  });

  // arch/x86/kvm/mmu/tdp_mmu.h: kvm_gfn_range_filter_to_root_types(): R-FLT-3
  test.each<[VmType, KernelProfile]>([
    ['sw-protected', 'rfc-v4'],
    ['sw-protected', 'linux-6.12'],
    ['sw-protected', 'linux-6.16'],
    ['snp', 'linux-6.12'],
    ['snp', 'linux-6.16'],
  ])('R-ATTR-8 %s, %s: the same call zaps all leafs in range, and no content is lost', (type, kernel) => {
    const vm = makeVm({
      type,
      kernel,
      slots: [{ startGfn: 0, npages: 16, guestMemfd: true }],
      mapped: [0, 1, 2, 3, 12],
      mappedPrivate: [4, 5, 6, 7],
    });
    const moved = countersMoved(vm, () => set(vm, 0, 8, PRIVATE));
    expect(leavesOf(vm)).toEqual(['12..12 4K']);
    expect(moved).toMatchObject({ leafs_zapped_direct_4k: 8, remote_tlb_flush_requests: 1 });
    expect(moved.private_pages_lost).toBeUndefined();
  });

  // arch/x86/kvm/mmu/mmu.c: kvm_arch_pre_set_memory_attributes()
  test.each<[string, boolean, number, number, number, number]>([
    // Request, then hull: the guard adds what is not covered of a region that lies in the slot and is not mixed.
    ['one gfn', true, 100, 101, 0, G1],
    ['one gfn', false, 100, 101, 100, 101],
    ['a whole 2M region', true, M2, 2 * M2, 0, G1],
    ['a whole 2M region', false, M2, 2 * M2, M2, 2 * M2],
    ['a whole 1G region', true, 0, G1, 0, G1],
    ['across a 1G border', true, G1 - 4, G1 + 4, 0, 2 * G1],
    ['across a 1G border', false, G1 - 4, G1 + 4, G1 - 4, G1 + 4],
    ['in the last 2M, whose 1G is outside the slot', true, 2 * G1 + 5, 2 * G1 + 6, 2 * G1, 2 * G1 + M2],
  ])('R-ATTR-12 %s, guard %s: [%i, %i) publishes [%i, %i)', (_, hugepageGuard, start, end, from, to) => {
    const vm = makeSlot(2 * G1 + M2, { hugepageGuard });
    set(vm, start, end, PRIVATE);
    expect(vm.invalidate).toMatchObject({ inProgress: 0, seq: 1, start: from, end: to });
    expect(eventsOf(vm, 'unmap_gfn_range')).toMatchObject([{ start, end }]);
  });
});

describe('which huge regions are mixed', () => {
  // arch/x86/kvm/mmu/mmu.c: kvm_arch_post_set_memory_attributes()
  test('R-ATTR-9 converting one gfn inside a uniform 2M sets mixed(2M); converting it back clears it', () => {
    const vm = makeSlot(2 * M2);
    set(vm, 700, 701, PRIVATE);
    expect(mixed2m(vm, 0, 1)).toEqual([false, true]);
    set(vm, 700, 701, 0);
    expect(mixed2m(vm, 0, 1)).toEqual([false, false]);
  });

  // arch/x86/kvm/mmu/mmu.c: kvm_arch_post_set_memory_attributes()
  test('R-ATTR-10 converting a whole aligned 2M clears mixed(2M) but sets mixed(1G)', () => {
    const vm = makeSlot(2 * G1);
    set(vm, 600, 601, PRIVATE);
    expect([mixed2m(vm, 1), mixed1g(vm, 0, 1)]).toEqual([[true], [true, false]]);
    set(vm, M2, 2 * M2, PRIVATE);
    expect([mixed2m(vm, 0, 1, 2), mixed1g(vm, 0, 1)]).toEqual([
      [false, false, false],
      [true, false],
    ]);
    // Uniform again as a whole.
    set(vm, 0, G1, PRIVATE);
    expect([mixed2m(vm, 0, 1, 2), mixed1g(vm, 0, 1)]).toEqual([
      [false, false, false],
      [false, false],
    ]);
  });

  // arch/x86/kvm/mmu/mmu.c: kvm_arch_post_set_memory_attributes()
  test('R-ATTR-11 regions that are not fully inside the slot never change mixed state', () => {
    // The slot is [100, 1124): region 0 is cut by its start, region 2 by its end, region 1 is whole.
    const vm = makeSlot(1024, {}, 100);
    set(vm, 200, 1100, PRIVATE);
    set(vm, 300, 301, 0);
    set(vm, 600, 601, 0);
    set(vm, 1050, 1051, 0);
    expect(mixed2m(vm, 0, 1, 2)).toEqual([false, true, false]);
    expect(mixed1g(vm, 0)).toEqual([false]);
    set(vm, 600, 601, PRIVATE);
    expect(mixed2m(vm, 0, 1, 2)).toEqual([false, false, false]);
  });

  // arch/x86/kvm/mmu/mmu.c: kvm_mmu_init_memslot_memory_attributes()
  test('R-ATTR-13 a slot created over attributes set before computes mixed for every contained region', () => {
    const vm = makeVm({ type: 'sw-protected', memory: 2 ** 32 });
    set(vm, 100, 101, PRIVATE); // region 0, which the slot cuts
    set(vm, 600, 700, PRIVATE); // region 1: mixed
    set(vm, 2 * M2, 3 * M2, PRIVATE); // region 2: private throughout
    set(vm, 4 * M2 - 1, 4 * M2, PRIVATE); // region 3: its last gfn
    set(vm, 5 * M2, 5 * M2 + 1, PRIVATE); // region 5: its first gfn
    set(vm, G1 + 7 * M2, G1 + 8 * M2, PRIVATE); // in 1G region 1: uniform in 2M, mixed in 1G
    const { seq } = vm.invalidate;
    const file = vm.createGuestMemfd({ size: 3 * G1 * PAGE });
    vm.setUserMemoryRegion2({
      slot: 0,
      flags: 4,
      guestPhysAddr: 200 * PAGE,
      memorySize: (3 * G1 - 400) * PAGE,
      userspaceAddr: 2 ** 40 + 200 * PAGE,
      guestMemfd: file.fd,
    });
    expect(mixed2m(vm, 0, 1, 2, 3, 4, 5, 6)).toEqual([false, true, false, true, false, true, false]);
    // 1G region 0 and 2 are cut by the slot's ends.
    expect(mixed1g(vm, 0, 1, 2)).toEqual([false, true, false]);
    expect(mixed2m(vm, 512 + 7)).toEqual([false]);
    expect(vm.invalidate.seq).toBe(seq);
  });
});
