// Memory exhausted: every operation reserves its worst case first, and is refused before its first change.

import { describe, expect, test } from 'vitest';
import { createVmSync, KvmError, type StopPoint, type Vm } from '../../src/index.ts';
import { isDebugBuild, PAGE, SLOT_HVA } from '../support/make-vm.ts';
import { FIRST, FIRST_PAGES, hvaOf, prepared, SECOND } from '../support/prepared-vm.ts';
import { randomFrom } from '../support/random.ts';

const TYPES = ['default', 'sw-protected', 'snp', 'tdx'] as const;
const SMALL = { type: 'default', debug: isDebugBuild } as const;
const gmem = (vm: Vm) => vm.guestMemfds[0];
const sharedBit = (vm: Vm) => (vm.options.type === 'tdx' ? 2 ** 47 : 0);
const range = { slot: 0, start: FIRST + 37, end: FIRST + 1033 };
const hostRange = { hva: hvaOf(FIRST + 41), length: 700 * PAGE };

/** Every door that can need memory. */
const operations: Record<string, (vm: Vm) => unknown> = {
  'create a slot': (vm) =>
    vm.setUserMemoryRegion({
      slot: 5,
      flags: 1,
      guestPhysAddr: 0x8001 * PAGE,
      memorySize: 999 * PAGE,
      userspaceAddr: hvaOf(0x3000),
    }),
  'delete a slot': (vm) =>
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: FIRST * PAGE, memorySize: 0, userspaceAddr: hvaOf(FIRST) }),
  'move a slot': (vm) =>
    vm.setUserMemoryRegion({
      slot: 0,
      flags: 1,
      guestPhysAddr: 0x8001 * PAGE,
      memorySize: FIRST_PAGES * PAGE,
      userspaceAddr: hvaOf(FIRST),
    }),
  'stop dirty logging': (vm) =>
    vm.setUserMemoryRegion({
      slot: 0,
      guestPhysAddr: FIRST * PAGE,
      memorySize: FIRST_PAGES * PAGE,
      userspaceAddr: hvaOf(FIRST),
    }),
  'start dirty logging': (vm) =>
    vm.setUserMemoryRegion({
      slot: 1,
      flags: 1,
      guestPhysAddr: 0x2010 * PAGE,
      memorySize: FIRST_PAGES * PAGE,
      userspaceAddr: hvaOf(FIRST),
    }),
  getDirtyLog: (vm) => vm.getDirtyLog({ slot: 0 }),
  clearDirtyLog: (vm) => vm.clearDirtyLog({ slot: 0, firstPage: 64, numPages: 640, bitmap: 0x5555_5555_5555_5555n }),
  unmapGfnRange: (vm) => vm.unmapGfnRange({ ...range, onlyPrivate: true, onlyShared: true, attrFilter: 3 }),
  ageGfn: (vm) => vm.ageGfn({ ...range, onlyShared: true, attrFilter: 1 }),
  zapGfnRange: (vm) => vm.zapGfnRange(FIRST + 5, SECOND + 333),
  'writeParameter nx_huge_pages': (vm) => vm.writeParameter('nx_huge_pages', true),
  recoverNxHugePages: (vm) => vm.recoverNxHugePages(),
  destroy: (vm) => vm.destroy(),
  access: (vm) => vm.vcpus[0].access({ gpa: sharedBit(vm) + (FIRST + 1300) * PAGE, kind: 'write', private: false }),
  preFaultMemory: (vm) => {
    // What runs out on the way is left over, as the kernel leaves it.
    let left = { gpa: BigInt(FIRST * PAGE), size: BigInt(1500 * PAGE) };
    while (left.size > 0n) left = vm.vcpus[0].preFaultMemory(left);
  },
  beginFault: (vm) =>
    vm.vcpus[0].beginFault({ gpa: sharedBit(vm) + (FIRST + 1300) * PAGE, kind: 'write', private: false }),
  mmap: (vm) => vm.host.mmap({ kind: 'anon4k', ...hostRange }),
  munmap: (vm) => vm.host.munmap(hostRange),
  mprotect: (vm) => vm.host.mprotect({ ...hostRange, prot: 1 }),
  'madvise DONTNEED': (vm) => vm.host.madvise({ ...hostRange, advice: 'DONTNEED' }),
  'madvise FREE': (vm) => vm.host.madvise({ ...hostRange, advice: 'FREE' }),
  'madvise COLD': (vm) => vm.host.madvise({ ...hostRange, advice: 'COLD' }),
  'madvise PAGEOUT': (vm) => vm.host.madvise({ ...hostRange, advice: 'PAGEOUT' }),
  'madvise POPULATE_WRITE': (vm) => vm.host.madvise({ ...hostRange, advice: 'POPULATE_WRITE' }),
  'madvise NOHUGEPAGE': (vm) => vm.host.madvise({ ...hostRange, advice: 'NOHUGEPAGE' }),
  mremap: (vm) => vm.host.mremap({ old: hostRange.hva, length: hostRange.length, new: hvaOf(0x10003) }),
  'host access': (vm) => vm.host.access({ ...hostRange, write: true }),
  migrate: (vm) => vm.host.migrate(hostRange),
  khugepaged: (vm) => vm.host.khugepaged({ hva: hvaOf(0), length: 2048 * PAGE }),
  ksm: (vm) => vm.host.ksm(hostRange),
  failHugePage: (vm) => vm.host.failHugePage({ hva: hvaOf(0x3000), length: 700 * PAGE }),
  pageIdleSet: (vm) => vm.host.pageIdleSet({ hva: hostRange.hva, pages: 300 }),
  clearRefs: (vm) => vm.host.clearRefs(4),
  invalidateRangeStart: (vm) => vm.host.invalidateRangeStart(hostRange),
  age: (vm) => vm.host.age(hostRange),
};
const rfcOnly: Record<string, (vm: Vm) => unknown> = {
  setSpteGfn: (vm) =>
    vm.setSpteGfn({ ...range, end: range.start + 1, onlyShared: true, arg: { pte: { writable: false } } }),
  changePte: (vm) => vm.host.changePte({ hva: hvaOf(FIRST + 50), writable: false }),
};
const privateOnly: Record<string, (vm: Vm) => unknown> = {
  setMemoryAttributes: (vm) =>
    vm.setMemoryAttributes({ address: (FIRST + 11) * PAGE, size: 4000 * PAGE, attributes: 8 }),
  'punch hole': (vm) => gmem(vm)?.punchHole(111 * PAGE, 555 * PAGE),
  allocate: (vm) => gmem(vm)?.allocate(3 * PAGE, 1001 * PAGE),
  memoryError: (vm) => gmem(vm)?.memoryError(150),
  'close a guest_memfd': (vm) => gmem(vm)?.close(),
  'private access': (vm) => vm.vcpus[0].access({ gpa: (SECOND + 450) * PAGE, kind: 'write', private: true }),
};
const tdxOnly: Record<string, (vm: Vm) => unknown> = {
  accept: (vm) => vm.vcpus[0].accept({ gpa: (SECOND + 710) * PAGE, size: 50 * PAGE }),
};

function isOutOfMemory(error: unknown): boolean {
  return error instanceof KvmError && error.code === 'ENOMEM' && /outgrow its memory/.test(error.message);
}

describe.each(TYPES)('%s', (type) => {
  const all = {
    ...operations,
    ...rfcOnly,
    ...(type === 'default' ? {} : privateOnly),
    ...(type === 'tdx' ? tdxOnly : {}),
  };
  const vm = prepared({ type, traceRecords: 20_000 }, 'thp');
  const base = vm.snapshot();

  test.each(Object.entries(all))('%s is refused with ENOMEM before the first change', (_, run) => {
    vm.restore(base);
    run(vm);
    const done = vm.snapshot();
    let refused = 0;
    for (let nth = 1; ; nth++) {
      vm.restore(base);
      vm.failReservation(nth);
      try {
        run(vm);
      } catch (error) {
        if (!isOutOfMemory(error)) throw error;
        refused++;
        expect(Buffer.compare(vm.snapshot(), base), `reservation ${nth} was refused`).toBe(0);
        run(vm);
      }
      vm.failReservation(0);
      expect(Buffer.compare(vm.snapshot(), done), `after reservation ${nth}`).toBe(0);
      if (refused < nth) break;
    }
    expect(refused).toBeGreaterThan(0);
    vm.restore(base);
  });
});

// The debug build, whichever is under test: only its assertions tell an allocation that was not reserved.
describe.each(TYPES)('%s with a full arena', (type) => {
  test.each(['rfc-v4', 'linux-6.12', 'linux-6.16'] as const)('%s: no allocation goes unreserved', (kernel) => {
    const random = randomFrom(`${type} ${kernel}`);
    const integer = (below: number) => Math.floor(random() * below);
    const pick = <T>(list: readonly T[]): T => list[integer(list.length)];
    const nxHugePages = random() < 0.3;
    const vm = prepared({ type, kernel, debug: true, nxHugePages }, kernel === 'rfc-v4' ? 'anon4k' : 'thp');
    const base = vm.snapshot();
    const doors = {
      ...operations,
      ...(kernel === 'rfc-v4' ? rfcOnly : {}),
      ...(type === 'default' ? {} : privateOnly),
      ...(type === 'tdx' ? { accept: tdxOnly.accept } : {}),
    };
    const gpas = [FIRST, 0x2010, ...(type === 'tdx' ? [] : [SECOND])];
    const somewhere = () => pick(gpas) + integer(FIRST_PAGES);
    const random4k = {
      access: () =>
        vm.vcpus[integer(2)].access({
          gpa: sharedBit(vm) + somewhere() * PAGE,
          kind: pick(['read', 'write', 'exec']),
          count: 1 + integer(40),
          private: false,
        }),
      unmap: () => {
        const start = FIRST + integer(FIRST_PAGES - 1);
        const end = start + 1 + integer(Math.min(200, FIRST + FIRST_PAGES - start - 1) + 1);
        return vm.unmapGfnRange({
          slot: 0,
          start,
          end: Math.min(end, FIRST + FIRST_PAGES),
          onlyShared: true,
          attrFilter: 1,
        });
      },
      convert: () =>
        vm.setMemoryAttributes({
          address: (SECOND + integer(900)) * PAGE,
          size: (1 + integer(100)) * PAGE,
          attributes: type === 'default' ? 0 : integer(2) * 8,
        }),
      discard: () =>
        vm.host.madvise({ hva: hvaOf(FIRST + integer(1500)), length: (1 + integer(99)) * PAGE, advice: 'DONTNEED' }),
      merge: () => vm.host.ksm({ hva: hvaOf(FIRST + integer(1500)), length: (1 + integer(99)) * PAGE }),
      idle: () => vm.host.pageIdleSet({ hva: hvaOf(FIRST + integer(1500)), pages: 1 + integer(99) }),
      preFault: () =>
        vm.vcpus[0].preFaultMemory({ gpa: (SECOND + integer(900)) * PAGE, size: (1 + integer(100)) * PAGE }),
      allocate: () => gmem(vm)?.allocate(integer(900) * PAGE, (1 + integer(100)) * PAGE),
      punch: () => gmem(vm)?.punchHole(integer(900) * PAGE, (1 + integer(100)) * PAGE),
    };
    const calls: (() => unknown)[] = Object.values(random4k);
    const stopAt: StopPoint[] = ['attributes-zapped', 'gmem-zapped', 'slot-invalid', 'notifier-started'];
    const faultBeside = () => {
      try {
        pick([random4k.access, random4k.preFault])();
      } catch (error) {
        if (!(error instanceof KvmError)) throw error;
      }
    };
    let refusals = 0;
    for (let round = 0; round < 60; round++) {
      vm.restore(base);
      // From nothing left to enough for most.
      vm.spareBlocks(integer(30_000));
      for (let step = 0; step < 25; step++) {
        const call = random() < 0.25 ? () => pick(Object.values(doors))(vm) : pick(calls);
        const before = vm.snapshot();
        const budget = random() < 0.3 ? 1 + integer(300) : undefined;
        try {
          if (budget === undefined) call();
          else {
            // vCPUs fault where the operation stands outside the lock: what it reserved stays its own.
            for (const { at } of vm.steps({ budget, stopAt }, call)) if (at !== 'budget') faultBeside();
          }
        } catch (error) {
          if (!(error instanceof KvmError)) throw error;
          if (!isOutOfMemory(error)) continue;
          refusals++;
          if (budget === undefined) expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
        }
      }
    }
    expect(refusals).toBeGreaterThan(0);
  });
});

test('all slots together beyond `memory` are refused, naming both', () => {
  const vm = createVmSync({ ...SMALL, memory: 64 * PAGE });
  const slot = (id: number, pages: number) => ({
    slot: id,
    guestPhysAddr: id * 2 ** 30,
    memorySize: pages * PAGE,
    userspaceAddr: SLOT_HVA + id * 2 ** 30,
  });
  vm.setUserMemoryRegion(slot(0, 60));
  const before = vm.snapshot();
  expect(() => vm.setUserMemoryRegion(slot(1, 5))).toThrow(
    /^setUserMemoryRegion\(slot 1, memorySize 0x5000\): ENOMEM: .* 0x40000 bytes, the `memory` of createVm\(\)$/,
  );
  expect(vm.snapshot()).toEqual(before);
  vm.setUserMemoryRegion(slot(1, 4));
  expect(() => vm.setUserMemoryRegion(slot(2, 1))).toThrow(KvmError);
});

test.each([1, 2])('step %i of a fault on a mirror root can be tried again after it ran out of memory', (step) => {
  const vm = prepared({ type: 'tdx' }, 'thp');
  const id = vm.vcpus[0].beginFault({ gpa: (SECOND + 750) * PAGE, kind: 'write', private: true });
  if (step === 2) expect(vm.vcpus[0].finishFault(id)).toBe('frozen');
  const before = vm.snapshot();
  for (const call of [() => vm.vcpus[0].finishFault(id), ...(step === 2 ? [() => vm.vcpus[0].dropFault(id)] : [])]) {
    vm.failReservation(1);
    expect(call).toThrow(/ENOMEM/);
    expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
  }
  if (step === 1) expect(vm.vcpus[0].finishFault(id)).toBe('frozen');
  expect(vm.vcpus[0].finishFault(id)).toBe('fixed');
});

test('an access that runs out of memory on the way says how many were done', () => {
  const vm = prepared({ type: 'default' }, 'anon4k');
  vm.failReservation(3);
  const exit = vm.vcpus[0].access({ gpa: (FIRST + 1300) * PAGE, kind: 'write', count: 10 });
  expect(exit).toMatchObject({ reason: 'error', errno: 'ENOMEM', done: 2, gpa: BigInt((FIRST + 1302) * PAGE) });
});

test('private pages that a notifier event takes piece by piece find the room they need, or none of them goes', () => {
  // Each leaf table of the file comes to differ in two flags, written and the TD's own.
  const size = 300 * 512 * PAGE;
  const vm = createVmSync({ ...SMALL, type: 'tdx', memory: 2 ** 30, kernel: 'linux-6.12', filterForm: 'none' });
  vm.host.mmap({ kind: 'anon4k', hva: SLOT_HVA, length: size });
  const { fd } = vm.createGuestMemfd({ size });
  const place = { slot: 0, flags: 4, guestPhysAddr: 0, memorySize: size, userspaceAddr: SLOT_HVA };
  vm.setUserMemoryRegion2({ ...place, guestMemfd: fd });
  vm.setMemoryAttributes({ address: 0, size, attributes: 8 });
  vm.vcpus[0].accept({ gpa: 0, size });
  vm.host.access({ hva: SLOT_HVA, length: size, write: true, step: 50 * PAGE });
  const full = vm.snapshot();
  const goesWith = (blocks: number): boolean => {
    vm.restore(full);
    vm.spareBlocks(blocks);
    const before = vm.snapshot();
    try {
      vm.host.migrate({ hva: SLOT_HVA, length: size });
    } catch (error) {
      if (!isOutOfMemory(error)) throw error;
      expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
      return false;
    }
    expect(vm.check()).toEqual([]);
    return true;
  };
  let [refused, enough] = [0, 2 ** 14];
  expect([goesWith(refused), goesWith(enough)]).toEqual([false, true]);
  while (enough - refused > 1) {
    const middle = (refused + enough) >> 1;
    if (goesWith(middle)) enough = middle;
    else refused = middle;
  }
});
