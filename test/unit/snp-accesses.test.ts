// What an SNP guest's access meets: MMIO sptes, leaves of the other kind, the RMP; and which leaves count as stale.

import { expect, test } from 'vitest';
import type { Vm } from '../../src/index.ts';
import { makeVm, PAGE } from '../support/make-vm.ts';
import { hvaOfSlot } from '../support/observe.ts';

const PRIVATE = 8;
const set = (vm: Vm, start: number, end: number, attributes: number) =>
  vm.setMemoryAttributes({ address: start * PAGE, size: (end - start) * PAGE, attributes });

// Spec 1.8: the C-bit says whether an access is private; rule R-MMU-9.
test('a private access is never MMIO, and finds private memory behind a stale MMIO spte', () => {
  const vm = makeVm({ type: 'snp', memory: 512 * PAGE });
  const [vcpu] = vm.vcpus;
  expect(vcpu.access({ gpa: 3 * PAGE, kind: 'read' }).reason).toBe('mmio');
  expect(vcpu.access({ gpa: 3 * PAGE, kind: 'read', private: true })).toMatchObject({
    reason: 'memory_fault',
    flags: 8,
  });
  const file = vm.createGuestMemfd({ size: 512 * PAGE });
  const region = { slot: 0, flags: 4, guestPhysAddr: 0, memorySize: 512 * PAGE, userspaceAddr: 2 ** 40 };
  vm.setUserMemoryRegion2({ ...region, guestMemfd: file.fd });
  set(vm, 0, 512, PRIVATE);
  expect(vcpu.access({ gpa: 3 * PAGE, kind: 'read', private: true }).reason).toBe('done');
  expect(vm.spte(3)).toMatchObject({ class: 'leaf', private: true });
});

test('an SW_PROTECTED guest is told flags 0 there: its accesses are as the attribute says, but for that one', () => {
  const vm = makeVm({ type: 'sw-protected', memory: 512 * PAGE });
  const [vcpu] = vm.vcpus;
  expect(vcpu.access({ gpa: 3 * PAGE, kind: 'read' }).reason).toBe('mmio');
  const file = vm.createGuestMemfd({ size: 512 * PAGE });
  const region = { slot: 0, flags: 4, guestPhysAddr: 0, memorySize: 512 * PAGE, userspaceAddr: 2 ** 40 };
  vm.setUserMemoryRegion2({ ...region, guestMemfd: file.fd });
  set(vm, 0, 512, PRIVATE);
  expect(vcpu.access({ gpa: 3 * PAGE, kind: 'read' })).toMatchObject({ reason: 'memory_fault', flags: 0 });
});

// Spec 6.9. rfc-v4 zaps nothing on SNP, so a shared leaf stays over what is private now.
test('the fast path asks whether the access is as the attribute says, not the leaf', () => {
  const vm = makeVm({
    type: 'snp',
    kernel: 'rfc-v4',
    slots: [{ startGfn: 0, npages: 16, kind: 'shmem' }],
    mapped: [0, 1],
  });
  vm.setUserMemoryRegion({ slot: 0, flags: 1, guestPhysAddr: 0, memorySize: 16 * PAGE, userspaceAddr: hvaOfSlot(0) });
  set(vm, 0, 1, PRIVATE);
  expect(vm.vcpus[0].access({ gpa: 0, kind: 'write' }).reason).toBe('done');
  expect([vm.stat('pf_fast'), vm.spte(0).writable]).toEqual([1, true]);
});

test('an access with the C-bit clear meets no RMP entry through a private leaf, alone and in a run', () => {
  for (const count of [1, 8]) {
    const vm = makeVm({ type: 'snp', kernel: 'rfc-v4', memory: 512 * PAGE });
    const [vcpu] = vm.vcpus;
    const file = vm.createGuestMemfd({ size: 512 * PAGE, folioSize: '2M' });
    const region = { slot: 0, flags: 4, guestPhysAddr: 0, memorySize: 512 * PAGE, userspaceAddr: 2 ** 40 };
    vm.setUserMemoryRegion2({ ...region, guestMemfd: file.fd });
    set(vm, 0, 512, PRIVATE);
    vcpu.access({ gpa: 0, kind: 'read' });
    set(vm, 256, 512, 0);
    // The region is mixed: the leaf is split, the RMP entry is of 2M still.
    vcpu.preFaultMemory({ gpa: 0, size: PAGE });
    expect([vm.leafs()[0]?.level, vm.rmp(384 * PAGE)]).toMatchObject([1, { level: 2 }]);
    const at = { gpa: 384 * PAGE, kind: 'write', count } as const;
    expect(vcpu.access(at)).toMatchObject({ reason: 'done', done: count });
    expect(vcpu.access({ ...at, private: false })).toMatchObject({ reason: 'done', done: count });
    expect(vcpu.access({ ...at, private: true })).toMatchObject({ reason: 'memory_fault', flags: 8 });
  }
});

test('a stale shared leaf counts once, however many private pages it maps', () => {
  const slots = [{ startGfn: 0, npages: 1024, kind: 'hugetlb2m' as const }];
  const vm = makeVm({ type: 'snp', kernel: 'rfc-v4', slots, mapped: [0, 512] });
  const stale = [[3], [100], [200, 300], [511, 513], [1023]].map(([start, end = start + 1]) => {
    set(vm, start, end, PRIVATE);
    return vm.losses().staleSharedLeaves;
  });
  expect(stale).toEqual([1, 1, 1, 2, 2]);
});
