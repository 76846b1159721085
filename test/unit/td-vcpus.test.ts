// A TD's vCPUs: how often they enter, flush, are met by a flush and try again; and which pages may be mapped by 2M for them.

import { describe, expect, test } from 'vitest';
import type { CreateVmOptions, Vm } from '../../src/index.ts';
import { makeVm, PAGE, type SlotSpec, type TestVm } from '../support/make-vm.ts';
import { counted, hvaOfSlot, refusalOf } from '../support/observe.ts';

const MIB = 2 ** 20;
const SHARED = 2 ** 47;
const PRIVATE = 8;
const set = (vm: Vm, gpa: number, size: number, attributes: number) =>
  vm.setMemoryAttributes({ address: gpa, size, attributes });

/** A slot of 4 MiB whose second half is private, and `others` behind it. */
function makeTd(
  options: Partial<CreateVmOptions> = {},
  kind: SlotSpec['kind'] = 'anon4k',
  others: SlotSpec[] = [],
): TestVm {
  const vm = makeVm({
    type: 'tdx',
    kernel: 'linux-6.16',
    vcpus: 2,
    septVeDisable: false,
    ...options,
    memory: 64 * MIB,
    slots: [{ startGfn: 0, npages: 1024, guestMemfd: true, kind }, ...others],
  });
  set(vm, 2 * MIB, 2 * MIB, PRIVATE);
  return vm;
}

describe('an ACCEPT that the module is too busy to map for', () => {
  const tries = ['TDG.MEM.PAGE.ACCEPT', 'TDH.VP.ENTER', 'TDH.MEM.PAGE.AUG', 'pf_taken'] as const;

  test.each([
    ['tries again inside KVM with td.localRetry, as an access does', true, [2, 2, 4, 4]],
    ['enters the guest again each time without', false, [5, 5, 4, 4]],
  ])('%s', (_, localRetry, wanted) => {
    const vm = makeTd({ td: { localRetry } });
    vm.tdx.injectStatus({ leaf: 'TDH.MEM.PAGE.AUG', status: 'TDX_OPERAND_BUSY', times: 3 });
    const moved = counted(vm, tries, () => expect(vm.vcpus[0].accept({ gpa: 2 * MIB, size: PAGE })).toBe(1));
    expect(tries.map((name) => moved[name])).toEqual(wanted);
  });
  test('counts as a fault without progress, for zero-step mitigation', () => {
    const vm = makeTd({ td: { localRetry: false } });
    vm.tdx.injectStatus({ leaf: 'TDH.MEM.PAGE.AUG', status: 'TDX_OPERAND_BUSY', times: 8 });
    const moved = counted(vm, ['zero_step_checks'], () => vm.vcpus[0].accept({ gpa: 2 * MIB, size: PAGE }));
    expect(moved.zero_step_checks).toBeGreaterThan(0);
  });
  test.each(['TDH.MEM.PAGE.AUG', 'TDH.MEM.SEPT.ADD'] as const)(
    'is tried again while an invalidation of other gfns is open (%s)',
    (leaf) => {
      const vm = makeTd({}, 'anon4k', [{ startGfn: 2 ** 20, npages: 1 }]);
      vm.host.invalidateRangeStart({ hva: hvaOfSlot(1), length: PAGE });
      vm.tdx.injectStatus({ leaf, status: 'TDX_OPERAND_BUSY', times: 1 });
      expect(vm.vcpus[0].accept({ gpa: 2 * MIB, size: PAGE })).toBe(1);
    },
  );
  test('is EINTR while an invalidation of its gfn is open', () => {
    const vm = makeTd();
    vm.host.invalidateRangeStart({ hva: hvaOfSlot(0) + 2 * MIB, length: PAGE });
    expect(() => vm.vcpus[0].accept({ gpa: 2 * MIB, size: PAGE })).toThrow('EINTR');
    expect(vm.vcpus[0].accept({ gpa: 2 * MIB + PAGE, size: PAGE })).toBe(1);
  });
});

describe('entries and flushes', () => {
  test('each fault leaves the TD, those of the fast path too', () => {
    const vm = makeTd({}, 'anon4k', [{ startGfn: 2 ** 20, npages: 16 }]);
    const slot = { slot: 1, guestPhysAddr: 2 ** 32, memorySize: 16 * PAGE, userspaceAddr: hvaOfSlot(1) };
    const touch = () => vm.vcpus[0].access({ gpa: SHARED + 2 ** 32, kind: 'write', size: 8 * PAGE });
    expect(counted(vm, ['TDH.VP.ENTER', 'pf_fast'], touch)).toEqual({ 'TDH.VP.ENTER': 9, pf_fast: 0 });
    vm.setUserMemoryRegion({ ...slot, flags: 1 });
    expect(counted(vm, ['TDH.VP.ENTER', 'pf_fast'], touch)).toEqual({ 'TDH.VP.ENTER': 9, pf_fast: 8 });
  });
  test.each<[string, (vm: Vm) => void]>([
    ['alike', () => undefined],
    [
      'one by one',
      (vm) => vm.tdx.injectStatus({ leaf: 'TDH.MEM.PAGE.AUG', status: 'TDX_OPERAND_BUSY', skip: 1000, times: 1 }),
    ],
  ])('a kicked vCPU flushes what it owes as it comes back (leaves %s)', (_, prepare) => {
    const vm = makeTd();
    const [a, b] = vm.vcpus;
    a.accept({ gpa: 2 * MIB, size: 2 * PAGE });
    a.access({ gpa: SHARED, kind: 'write' });
    b.setInGuest(true);
    prepare(vm);
    vm.flushRemoteTlbs();
    const back = counted(vm, ['tlb_flush', 'TDH.VP.ENTER'], () => set(vm, 2 * MIB, PAGE, 0));
    expect(back).toEqual({ tlb_flush: 1, 'TDH.VP.ENTER': 1 });
    const within = counted(vm, ['tlb_flush', 'TDH.VP.ENTER'], () => b.access({ gpa: SHARED, kind: 'write' }));
    expect(within).toEqual({ tlb_flush: 0, 'TDH.VP.ENTER': 0 });
  });

  test('a kick brings back a vCPU that the module kept out, once, and every later one meets it', () => {
    const vm = makeTd({ vcpus: 3, td: { localRetry: false } });
    const [a, b, c] = vm.vcpus;
    a.accept({ gpa: 3 * MIB, size: 3 * PAGE });
    b.beginAccept({ gpa: 2 * MIB });
    c.setInGuest(true);
    // The accept under way holds the tree: after six faults VP.ENTER finds it locked.
    expect(c.access({ gpa: 2 * MIB, kind: 'read' }).reason).toBe('retry');
    b.finishAccept();
    const moved = counted(vm, ['TDH.VP.ENTER', 'kicks', 'kick_ipis'], () => set(vm, 3 * MIB, 3 * PAGE, 0));
    expect(moved).toEqual({ 'TDH.VP.ENTER': 3, kicks: 3, kick_ipis: 2 });
  });
  test('a kick brings back no vCPU between the phases of a fault', () => {
    const vm = makeTd();
    const [a, b] = vm.vcpus;
    a.accept({ gpa: 3 * MIB, size: PAGE });
    b.setInGuest(true);
    const id = b.beginFault({ gpa: SHARED, kind: 'write' });
    vm.tdx.injectStatus({ leaf: 'TDH.MEM.PAGE.AUG', status: 'TDX_OPERAND_BUSY', skip: 1000, times: 1 });
    const kicked = counted(vm, ['TDH.VP.ENTER', 'kicks'], () => set(vm, 3 * MIB, PAGE, 0));
    expect(kicked).toEqual({ 'TDH.VP.ENTER': 0, kicks: 1 });
    expect(counted(vm, ['TDH.VP.ENTER'], () => b.finishFault(id))).toEqual({ 'TDH.VP.ENTER': 1 });
  });

  const met = ['remote_tlb_flush', 'remote_tlb_flush_requests'] as const;
  test('a flush meets no vCPU whose own fault asks for it', () => {
    for (const type of ['tdx', 'sw-protected'] as const) {
      const vm = makeTd({ type }, 'hugetlb2m');
      const shared = type === 'tdx' ? SHARED : 0;
      set(vm, MIB, PAGE, PRIVATE);
      vm.vcpus[0].setInGuest(true);
      vm.vcpus[0].access({ gpa: shared, kind: 'write', size: 4 * PAGE });
      set(vm, MIB, PAGE, 0);
      // The region is mixed no more: a 2M leaf takes the place of the table.
      const moved = counted(vm, met, () => vm.vcpus[0].access({ gpa: shared + 8 * PAGE, kind: 'write' }));
      expect([type, moved, vm.stat('pages_2m')]).toEqual([
        type,
        { remote_tlb_flush: 0, remote_tlb_flush_requests: 1 },
        1,
      ]);
    }
  });
  test('a flush meets no vCPU between the phases of a fault, and meets it again behind them', () => {
    for (const type of ['tdx', 'sw-protected'] as const) {
      const vm = makeTd({ type });
      vm.vcpus[0].access({ gpa: type === 'tdx' ? SHARED : 0, kind: 'write', size: 8 * PAGE });
      vm.vcpus[1].setInGuest(true);
      const unmap = (page: number) =>
        counted(vm, met, () => vm.host.madvise({ hva: hvaOfSlot(0) + page * PAGE, length: PAGE, advice: 'DONTNEED' }));
      expect([type, unmap(0).remote_tlb_flush]).toEqual([type, 1]);
      const id = vm.vcpus[1].beginFault({ gpa: (type === 'tdx' ? SHARED : 0) + 100 * PAGE, kind: 'write' });
      expect([type, unmap(1)]).toEqual([type, { remote_tlb_flush: 0, remote_tlb_flush_requests: 1 }]);
      vm.vcpus[1].finishFault(id);
      expect([type, unmap(2).remote_tlb_flush]).toEqual([type, 1]);
    }
  });
  test('a flush meets no vCPU of a TD that was terminated, which refuses another termination', () => {
    const vm = makeTd();
    vm.vcpus[0].access({ gpa: SHARED, kind: 'write' });
    vm.vcpus[1].setInGuest(true);
    vm.tdx.terminate();
    const unmap = () => vm.host.madvise({ hva: hvaOfSlot(0), length: PAGE, advice: 'DONTNEED' });
    expect(counted(vm, met, unmap)).toEqual({ remote_tlb_flush: 0, remote_tlb_flush_requests: 1 });
    expect(refusalOf(vm, () => vm.tdx.terminate())).toContain('EIO');
  });
  test('a walk that cannot link a table ends at the entry that should link it', () => {
    const vm = makeTd();
    vm.vcpus[0].run();
    vm.tdx.injectStatus({ leaf: 'TDH.MEM.SEPT.ADD', status: 'TDX_OPERAND_BUSY', times: 100 });
    const levels = ['entries_visited_l4', 'entries_visited_l3', 'entries_visited_l2', 'entries_visited_l1'] as const;
    const moved = counted(vm, levels, () => vm.vcpus[0].access({ gpa: 2 * MIB, kind: 'read' }));
    expect(levels.map((name) => moved[name])).toEqual([16, 0, 0, 0]);
  });
});

describe('td.hugePages', () => {
  function makeHuge(folioSize?: '4K' | '2M') {
    const vm = makeVm({ type: 'tdx', kernel: 'linux-6.16', memory: 64 * MIB, td: { hugePages: true } });
    const file = vm.createGuestMemfd({ size: 4 * MIB, folioSize });
    vm.setUserMemoryRegion2({
      slot: 0,
      flags: 4,
      guestPhysAddr: 0,
      memorySize: 4 * MIB,
      userspaceAddr: hvaOfSlot(0),
      guestMemfd: file.fd,
    });
    set(vm, 0, 4 * MIB, PRIVATE);
    const fault = (page: number) => vm.vcpus[0].preFaultMemory({ gpa: page * PAGE, size: PAGE });
    return { vm, file, fault };
  }

  test.each([
    [undefined, 512, 1],
    ['2M', 512, 1],
    ['4K', 1, 0],
  ] as const)('maps by 2M what the file has as a folio: folioSize %s', (folioSize, allocated, huge) => {
    const { vm, fault } = makeHuge(folioSize);
    fault(0);
    expect([vm.stat('gmem_pages_allocated'), vm.stat('pages_2m')]).toEqual([allocated, huge]);
  });
  test.each([5, 0])('a folio that a hole cut is mapped by 4K, whole again or not: page %i first', (page) => {
    const { vm, file, fault } = makeHuge();
    file.allocate(0, 2 * MIB);
    file.punchHole(0, PAGE);
    fault(page);
    expect([vm.stat('pages_4k'), vm.stat('pages_2m')]).toEqual([1, 0]);
  });
  test('512 pages that came one by one are no folio', () => {
    const { vm, file, fault } = makeHuge('4K');
    for (let page = 0; page < 511; page++) file.allocate(page * PAGE, PAGE);
    fault(511);
    expect([vm.stat('pages_4k'), vm.stat('pages_2m')]).toEqual([1, 0]);
  });
  test('a pre-fault passes a 2M leaf in one step, whatever is invalidated further on in it', () => {
    const { vm } = makeHuge();
    vm.vcpus[0].accept({ gpa: 0, size: 2 * MIB, level: 2 });
    vm.host.mmap({ kind: 'anon4k', hva: hvaOfSlot(0), length: 4 * MIB });
    vm.host.invalidateRangeStart({ hva: hvaOfSlot(0) + 139 * PAGE, length: PAGE });
    const levels = ['entries_visited_l2', 'entries_visited_l1'] as const;
    const moved = counted(vm, levels, () =>
      expect(vm.vcpus[0].preFaultMemory({ gpa: 0, size: 2 * MIB }).size).toBe(0n),
    );
    expect(moved).toEqual({ entries_visited_l2: 1, entries_visited_l1: 0 });
  });
});

test('a hole that cannot split a 2M leaf goes no further, however many pieces the binding has', () => {
  const vm = makeVm({ type: 'tdx', memory: 1100 * PAGE, td: { hugePages: true, zap: 'split-first' } });
  const file = vm.createGuestMemfd({ size: 1100 * PAGE });
  const region = { slot: 0, flags: 4, guestPhysAddr: 0, memorySize: 1100 * PAGE, userspaceAddr: hvaOfSlot(0) };
  vm.setUserMemoryRegion2({ ...region, guestMemfd: file.fd });
  set(vm, 0, 1100 * PAGE, PRIVATE);
  vm.vcpus[0].accept({ gpa: 0, size: 2 * MIB, level: 2 });
  vm.tdx.injectStatus({ leaf: 'TDH.MEM.RANGE.BLOCK', status: 'TDX_OPERAND_BUSY', times: 2 });
  const calls = ['TDH.MEM.RANGE.BLOCK', 'TDH.MEM.PAGE.DEMOTE', 'lock_sections'] as const;
  const moved = counted(vm, calls, () => expect(() => file.punchHole(0, 1089 * PAGE)).toThrow('EIO'));
  expect(moved).toMatchObject({ 'TDH.MEM.RANGE.BLOCK': 2, 'TDH.MEM.PAGE.DEMOTE': 0 });
  expect(vm.dead).toBe(true);
});

test('a move to gfns that no root can map waits for notifiers like any other, and zaps nothing', () => {
  const vm = makeTd({}, 'anon4k', [{ startGfn: 2 ** 20, npages: 256 }]);
  const slot = { slot: 1, memorySize: MIB, userspaceAddr: hvaOfSlot(1) };
  vm.vcpus[0].access({ gpa: SHARED + 2 ** 32, size: MIB, kind: 'write' });
  vm.host.invalidateRangeStart({ hva: hvaOfSlot(1), length: PAGE });
  const beyond = { ...slot, guestPhysAddr: SHARED - MIB + PAGE };
  const zapped = counted(vm, ['leafs_zapped_direct_4k'], () =>
    expect(refusalOf(vm, () => vm.setUserMemoryRegion(beyond))).toContain('EBUSY'),
  );
  expect(zapped.leafs_zapped_direct_4k).toBe(0);
  vm.host.invalidateRangeEnd({ hva: hvaOfSlot(1), length: PAGE });
  // What it zapped before it was refused stays zapped.
  expect(() => vm.setUserMemoryRegion(beyond)).toThrow('EINVAL');
});

test('an access of a size touches every page of [gpa, gpa + size)', () => {
  const vm = makeTd();
  const touch = (gpa: number, size: number) => vm.vcpus[0].access({ gpa: SHARED + gpa, kind: 'write', size }).done;
  expect([touch(PAGE - 10, 20), touch(8 * PAGE + 1, 2 * PAGE), touch(20 * PAGE, PAGE), touch(5, 0)]).toEqual([
    2, 3, 1, 0,
  ]);
  expect(vm.stat('pages_4k')).toBe(6);
});
