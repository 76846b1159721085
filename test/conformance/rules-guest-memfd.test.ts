// Rules of guest_memfd (R-GMEM-*): binding, fallocate, and what punch, release and poison do to mappings and content.

import { afterEach, describe, expect, test } from 'vitest';
import { closeFd, openFd, type Vm } from '../../src/index.ts';
import { expectTrace, makeVm, PAGE } from '../support/make-vm.ts';
import { counted, countersMoved, eventsOf, hvaOfSlot, leavesOf, refusalOf } from '../support/observe.ts';

const GUEST_MEMFD = 4;
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const PRIVATE = 8;
const OTHER_FD = 900_001;

const range = (from: number, to: number) => Array.from({ length: to - from }, (_, k) => from + k);

/** KVM_SET_USER_MEMORY_REGION2 of slot `id` over `fd`, in pages. */
function bind(vm: Vm, id: number, gfn: number, npages: number, fd: number, pgoff = 0, flags = GUEST_MEMFD): void {
  vm.setUserMemoryRegion2({
    slot: id,
    flags,
    guestPhysAddr: gfn * PAGE,
    memorySize: npages * PAGE,
    userspaceAddr: hvaOfSlot(id) + gfn * PAGE,
    guestMemfd: fd,
    guestMemfdOffset: pgoff * PAGE,
  });
}

/** Makes [from, to) private and has the guest write it. */
function writePrivate(vm: Vm, from: number, to: number): void {
  vm.setMemoryAttributes({ address: from * PAGE, size: (to - from) * PAGE, attributes: PRIVATE });
  vm.vcpus[0].access({ gpa: from * PAGE, kind: 'write', size: (to - from) * PAGE });
  vm.trace();
}

describe('binding a slot to a file', () => {
  afterEach(() => closeFd(OTHER_FD));

  const makeBound = () => {
    const vm = makeVm({ type: 'snp', memory: 256 * PAGE });
    const file = vm.createGuestMemfd({ size: 64 * PAGE });
    bind(vm, 0, 0, 32, file.fd);
    vm.trace();
    return { vm, file };
  };

  // virt/kvm/guest_memfd.c: kvm_gmem_bind(); virt/kvm/kvm_main.c: __kvm_set_memory_region()
  test.each<[string, string, (vm: Vm, fd: number) => void]>([
    ['pages that are bound already, all of them', 'EINVAL', (vm, fd) => bind(vm, 1, 64, 32, fd, 0)],
    ['pages that are bound already, the last one', 'EINVAL', (vm, fd) => bind(vm, 1, 64, 8, fd, 31)],
    ['a range beyond the file', 'EINVAL', (vm, fd) => bind(vm, 1, 64, 33, fd, 32)],
    ['an offset beyond the file', 'EINVAL', (vm, fd) => bind(vm, 1, 64, 1, fd, 64)],
    ['gfns of another slot', 'EEXIST', (vm, fd) => bind(vm, 1, 31, 8, fd, 32)],
    ['gfns of another slot and a bad descriptor', 'EEXIST', (vm) => bind(vm, 1, 31, 8, OTHER_FD, 32)],
    ['a descriptor that is not open', 'EBADF', (vm) => bind(vm, 1, 64, 8, OTHER_FD)],
    ['a negative descriptor', 'EBADF', (vm) => bind(vm, 1, 64, 8, -1)],
    ['nothing wrong', 'none', (vm, fd) => bind(vm, 1, 64, 32, fd, 32)],
  ])('R-GMEM-1 %s: %s', (_, code, call) => {
    const { vm, file } = makeBound();
    expect(refusalOf(vm, () => call(vm, file.fd))).toBe(code);
    if (code !== 'none') expectTrace(vm, []);
  });

  // virt/kvm/guest_memfd.c: kvm_gmem_bind()
  test('R-GMEM-1 another VM’s file, and a file of another kind: EINVAL', () => {
    const { vm } = makeBound();
    const foreign = makeVm({ type: 'snp' }).createGuestMemfd({ size: 64 * PAGE });
    expect(refusalOf(vm, () => bind(vm, 1, 64, 8, foreign.fd))).toBe('EINVAL');
    openFd(OTHER_FD, 'other');
    expect(refusalOf(vm, () => bind(vm, 1, 64, 8, OTHER_FD))).toBe('EINVAL');
  });

  // virt/kvm/kvm_main.c: __kvm_set_memory_region()
  const hva = hvaOfSlot(0);
  const own = { slot: 0, guestPhysAddr: 0, memorySize: 32 * PAGE, userspaceAddr: hva };
  test.each<[string, (vm: Vm, fd: number) => void]>([
    ['moving it', (vm, fd) => vm.setUserMemoryRegion2({ ...own, guestPhysAddr: 0x100000, flags: 4, guestMemfd: fd })],
    ['setting it again as it is', (vm, fd) => vm.setUserMemoryRegion2({ ...own, flags: 4, guestMemfd: fd })],
    ['dropping its file', (vm) => vm.setUserMemoryRegion({ ...own, flags: 0 })],
    ['making it READONLY', (vm, fd) => vm.setUserMemoryRegion2({ ...own, flags: 6, guestMemfd: fd })],
    ['logging it', (vm, fd) => vm.setUserMemoryRegion2({ ...own, flags: 5, guestMemfd: fd })],
    ['creating one READONLY', (vm, fd) => bind(vm, 1, 64, 8, fd, 32, GUEST_MEMFD | 2)],
    ['creating one that is logged', (vm, fd) => bind(vm, 1, 64, 8, fd, 32, GUEST_MEMFD | 1)],
    ['creating one by version 1 of the ioctl', (vm) => vm.setUserMemoryRegion({ ...own, slot: 1, flags: 4 })],
  ])('R-GMEM-9 a guest_memfd slot refuses %s with EINVAL', (_, call) => {
    const { vm, file } = makeBound();
    expect(refusalOf(vm, () => call(vm, file.fd))).toBe('EINVAL');
    expectTrace(vm, []);
  });
});

describe('fallocate', () => {
  // virt/kvm/guest_memfd.c: kvm_gmem_fallocate()
  test.each<[string, number, number, number, string]>([
    ['allocate without KEEP_SIZE', 0, 0, PAGE, 'EOPNOTSUPP'],
    ['punch without KEEP_SIZE', PUNCH_HOLE, 0, PAGE, 'EOPNOTSUPP'],
    ['another mode bit', KEEP_SIZE | 8, 0, PAGE, 'EOPNOTSUPP'],
    ['an unaligned offset', KEEP_SIZE | PUNCH_HOLE, 0x800, PAGE, 'EINVAL'],
    ['an unaligned length', KEEP_SIZE | PUNCH_HOLE, 0, 0x800, 'EINVAL'],
    ['length 0', KEEP_SIZE | PUNCH_HOLE, 0, 0, 'EINVAL'],
    ['allocate beyond the file', KEEP_SIZE, 8 * PAGE, 9 * PAGE, 'EINVAL'],
    ['an unaligned offset without KEEP_SIZE', PUNCH_HOLE, 0x800, PAGE, 'EOPNOTSUPP'],
    ['punch beyond the file', KEEP_SIZE | PUNCH_HOLE, 8 * PAGE, 64 * PAGE, 'none'],
  ])('R-GMEM-2 %s (mode %i): %s + %s bytes: %s', (_, mode, offset, length, code) => {
    const vm = makeVm({ type: 'snp', slots: [{ startGfn: 0, npages: 16, guestMemfd: true }] });
    writePrivate(vm, 0, 4);
    const call = () => vm.slotFiles[0]?.fallocate({ mode, offset, length });
    expect(refusalOf(vm, call)).toBe(code);
    expect(leavesOf(vm)).toEqual(['0..3 4K']);
  });
});

describe('punch hole', () => {
  // virt/kvm/guest_memfd.c: kvm_gmem_invalidate_begin()
  test('R-GMEM-3 a punch maps file pages to gfns by pgoff and clips them to each binding', () => {
    const vm = makeVm({ type: 'snp', memory: 64 * PAGE });
    const file = vm.createGuestMemfd({ size: 64 * PAGE });
    // Pages 4 to 11 at gfn 0x100, pages 20 to 27 at gfn 0x200: lower pages at the lower address, and not.
    bind(vm, 0, 0x200, 8, file.fd, 4);
    bind(vm, 1, 0x100, 8, file.fd, 20);
    writePrivate(vm, 0x200, 0x208);
    writePrivate(vm, 0x100, 0x108);
    file.punchHole(9 * PAGE, 14 * PAGE);
    // [9, 23) meets [4, 12) in [9, 12) and [20, 28) in [20, 23).
    expectTrace(vm, [
      'begin',
      'add [0x205, 0x208)',
      'unmap slot 0 [0x205, 0x208)',
      ...['0x205', '0x206', '0x207'].map((gfn) => `zap ${gfn} 4K`),
      'add [0x100, 0x103)',
      'unmap slot 1 [0x100, 0x103)',
      ...['0x100', '0x101', '0x102'].map((gfn) => `zap ${gfn} 4K`),
      'flush',
      `end seq ${vm.invalidate.seq}`,
    ]);
    expect(leavesOf(vm)).toEqual([`${0x103}..${0x107} 4K`, `${0x200}..${0x204} 4K`]);
    expect(vm.invalidate).toMatchObject({ inProgress: 0, start: 0x100, end: 0x208 });
  });

  // virt/kvm/guest_memfd.c: kvm_gmem_invalidate_begin()
  test('R-GMEM-4 a punch of an unbound range frees memory and leaves seq alone', () => {
    const vm = makeVm({ type: 'snp', memory: 64 * PAGE });
    const file = vm.createGuestMemfd({ size: 64 * PAGE });
    bind(vm, 0, 0, 8, file.fd);
    writePrivate(vm, 0, 8);
    file.allocate(32 * PAGE, 16 * PAGE);
    const before = vm.invalidate;
    const moved = countersMoved(vm, () => file.punchHole(8 * PAGE, 32 * PAGE));
    expect(moved).toEqual({ gmem_pages_freed: 8 });
    expect(vm.invalidate).toEqual(before);
    expect(leavesOf(vm)).toEqual(['0..7 4K']);
    expect(vm.trace()).toEqual([{ name: 'gmem_inval_begin', start: 8, end: 40 }]);
  });

  // virt/kvm/guest_memfd.c: kvm_gmem_invalidate_begin(), kvm_gmem_invalidate_end()
  test.each([1, 2, 3])(
    'R-GMEM-5 a punch of a range bound by %i slots: seq +1, one lock hold a phase, one flush',
    (slots) => {
      const vm = makeVm({ type: 'snp', memory: 64 * PAGE });
      const file = vm.createGuestMemfd({ size: 64 * PAGE });
      for (const id of range(0, slots)) {
        bind(vm, id, id * 0x100, 8, file.fd, id * 8);
        writePrivate(vm, id * 0x100, id * 0x100 + 8);
      }
      const { seq } = vm.invalidate;
      const names = ['lock_sections', 'invalidations', 'remote_tlb_flush_requests', 'gfns_zapped'] as const;
      const punch = () => file.punchHole(0, 64 * PAGE);
      expect(counted(vm, names, punch)).toEqual({
        lock_sections: 2,
        invalidations: 1,
        remote_tlb_flush_requests: 1,
        gfns_zapped: 8 * slots,
      });
      expect(vm.invalidate).toMatchObject({ inProgress: 0, seq: seq + 1 });
      // Nothing is mapped any more: the same again, without the flush.
      expect(counted(vm, names, punch)).toEqual({
        lock_sections: 2,
        invalidations: 1,
        remote_tlb_flush_requests: 0,
        gfns_zapped: 0,
      });
      expect(vm.invalidate.seq).toBe(seq + 2);
    },
  );

  // virt/kvm/guest_memfd.c: kvm_gmem_invalidate_begin() walks the pieces in which xa_store_range() keeps a binding
  test.each<[string, number, number, number, number, number]>([
    // Binding [pgoff, pgoff + npages), punched pages [from, to), visits.
    ['one piece of 64', 0, 64, 0, 64, 1],
    ['[0, 64) and [64, 100)', 0, 100, 0, 100, 2],
    ['the same, the first piece only', 0, 100, 3, 64, 1],
    ['the same, across the border of the pieces', 0, 100, 63, 65, 2],
    ['the same, the second piece only', 0, 100, 64, 200, 1],
    ['[60, 64), [64, 128), [128, 130)', 60, 70, 0, 200, 3],
    ['a whole 4096', 0, 4096, 0, 4096, 1],
    ['a whole 4096, from inside', 0, 4096, 5, 4096, 1],
  ])(
    'R-GMEM-5 (as corrected) a slot is visited once for each piece of its binding: %s',
    (_, pgoff, npages, from, to, visits) => {
      const vm = makeVm({ type: 'snp', memory: npages * PAGE });
      const file = vm.createGuestMemfd({ size: (pgoff + npages) * PAGE });
      bind(vm, 0, 0, npages, file.fd, pgoff);
      writePrivate(vm, 0, npages);
      file.punchHole(from * PAGE, (to - from) * PAGE);
      // Each visit repeats the same range, clipped to the slot and not to the piece; only the first finds leaves.
      const expected = { start: Math.max(from - pgoff, 0), end: Math.min(to - pgoff, npages) };
      const events = eventsOf(vm, 'inv_begin', 'inv_add', 'unmap_gfn_range', 'unmap_gfn_range_ret', 'flush');
      expect(events.map(({ name }) => name)).toEqual([
        'inv_begin',
        ...range(0, visits).flatMap(() => ['inv_add', 'unmap_gfn_range', 'unmap_gfn_range_ret']),
        'flush',
      ]);
      for (const event of events) if ('start' in event) expect(event).toMatchObject(expected);
      const answers = events.filter(({ name }) => name === 'unmap_gfn_range_ret').map(({ ret }) => ret);
      expect(answers).toEqual(range(0, visits).map((visit) => visit === 0));
    },
  );

  // virt/kvm/guest_memfd.c: kvm_gmem_get_pfn()
  test.each(['snp', 'sw-protected', 'tdx'] as const)(
    'R-GMEM-6 a re-fault after a punch yields a new page; the attribute is still private (%s)',
    (type) => {
      const vm = makeVm({
        type,
        slots: [{ startGfn: 0, npages: 16, guestMemfd: true }],
        mappedPrivate: [0, 1, 2, 3],
      });
      const punched = countersMoved(vm, () => vm.slotFiles[0]?.punchHole(0, 2 * PAGE));
      expect(punched).toMatchObject({ gmem_pages_freed: 2, private_pages_lost: 2, gfns_zapped: 2 });
      expect(range(0, 4).map((gfn) => vm.attributesOf(gfn))).toEqual([8, 8, 8, 8]);
      const read = () =>
        type === 'tdx'
          ? vm.vcpus[0].accept({ gpa: 0, size: 4 * PAGE })
          : vm.vcpus[0].access({ gpa: 0, kind: 'read', count: 4 });
      const again = countersMoved(vm, read);
      expect(again).toMatchObject({ gmem_pages_allocated: 2, pf_fixed: 2 });
      // What nobody wrote since cannot be lost: the new pages hold zeroes. A TD's hold the zeroes it accepted.
      const lost = type === 'tdx' ? 4 : 2;
      const whole = countersMoved(vm, () => vm.slotFiles[0]?.punchHole(0, 4 * PAGE));
      expect(whole).toMatchObject({ gmem_pages_freed: 4, private_pages_lost: lost });
      expect(vm.check()).toEqual([]);
    },
  );
});

// Ours, as the what-ifs that map private memory by 2M are: a kernel that does would have to do the like.
test.each(['sw-protected', 'tdx'] as const)(
  'while a part of 2M is punched, no 2M leaf comes to map what is about to be freed (%s)',
  (type) => {
    const isTd = type === 'tdx';
    const vm = makeVm({ type, memory: 1024 * PAGE, ...(isTd ? { td: { hugePages: true } } : {}) });
    const file = vm.createGuestMemfd({ size: 1024 * PAGE, folioSize: '2M' });
    bind(vm, 0, 0, 1024, file.fd);
    vm.setMemoryAttributes({ address: 0, size: 1024 * PAGE, attributes: PRIVATE });
    file.allocate(0, 1024 * PAGE);
    const touch = (gfn: number) => vm.vcpus[0].access({ gpa: gfn * PAGE, kind: 'read', private: true }).reason;
    const pieces = vm.steps({ stopAt: ['gmem-zapped'] }, () => file.punchHole(3 * PAGE, PAGE));
    pieces.next();
    expect(vm.invalidate).toMatchObject({ start: 0, end: 512 });
    expect(touch(4)).toBe('retry');
    expect(pieces.next().done).toBe(true);
    vm.vcpus[0].preFaultMemory({ gpa: 4 * PAGE, size: PAGE });
    expect(leavesOf(vm, isTd ? 'mirror' : 'direct')).toEqual(['4..4 4K']);
    expect(vm.check()).toEqual([]);
  },
);

describe('release and poison', () => {
  // virt/kvm/guest_memfd.c: kvm_gmem_release()
  test('R-GMEM-7 a release zaps every bound slot with one begin; a later private fault gets EFAULT', () => {
    const vm = makeVm({ type: 'snp', memory: 64 * PAGE });
    const file = vm.createGuestMemfd({ size: 64 * PAGE });
    bind(vm, 0, 0, 8, file.fd);
    bind(vm, 1, 0x100, 8, file.fd, 8);
    writePrivate(vm, 0, 8);
    writePrivate(vm, 0x100, 0x108);
    const { seq } = vm.invalidate;
    const moved = countersMoved(vm, () => file.close());
    expect(moved).toMatchObject({
      gfns_zapped: 16,
      invalidations: 1,
      remote_tlb_flush_requests: 1,
      gmem_pages_freed: 16,
    });
    expect(vm.invalidate).toMatchObject({ inProgress: 0, seq: seq + 1, start: 0, end: 0x108 });
    expect(eventsOf(vm, 'gmem_inval_begin')).toEqual([{ name: 'gmem_inval_begin', start: 0, end: 2n ** 64n - 1n }]);
    expect(leavesOf(vm)).toEqual([]);
    const exit = vm.vcpus[0].access({ gpa: 3 * PAGE, kind: 'write', private: true });
    expect(exit).toMatchObject({ reason: 'memory_fault', errno: 'EFAULT', flags: 8, gpa: 3n * 4096n, size: 4096n });
    expect(leavesOf(vm)).toEqual([]);
  });

  // virt/kvm/guest_memfd.c: kvm_gmem_release(): the pages live until the inode's death, behind the zap
  test('R-GMEM-7 the memory is kept until everything is zapped', () => {
    const vm = makeVm({ type: 'snp', slots: [{ startGfn: 0, npages: 8, guestMemfd: true }] });
    writePrivate(vm, 0, 8);
    const steps = vm.steps({ stopAt: ['gmem-zapped'] }, () => vm.slotFiles[0]?.close());
    expect(steps.next().value).toEqual({ at: 'gmem-zapped' });
    expect(leavesOf(vm)).toEqual([]);
    expect(vm.stats()).toMatchObject({ gmem_pages_allocated: 8, gmem_pages_freed: 0 });
    expect(vm.invalidate.inProgress).toBe(1);
    expect(steps.next().done).toBe(true);
    expect(vm.stats()).toMatchObject({ gmem_pages_freed: 8 });
    expect(vm.invalidate.inProgress).toBe(0);
  });

  // virt/kvm/guest_memfd.c: kvm_gmem_error_folio()
  test.each(['snp', 'sw-protected', 'tdx'] as const)(
    'R-GMEM-8 poison zaps without truncation; the next fault gets EHWPOISON (%s)',
    (type) => {
      const vm = makeVm({
        type,
        slots: [{ startGfn: 0, npages: 16, guestMemfd: true }],
        mappedPrivate: [4, 5, 6],
      });
      const { seq } = vm.invalidate;
      const moved = countersMoved(vm, () => vm.slotFiles[0]?.memoryError(5));
      expect(moved).toMatchObject({ gfns_zapped: 1, invalidations: 1, remote_tlb_flush_requests: 1 });
      expect(moved.gmem_pages_freed).toBeUndefined();
      expect(vm.invalidate).toMatchObject({ inProgress: 0, seq: seq + 1, start: 5, end: 6 });
      expect(leavesOf(vm, type === 'tdx' ? 'mirror' : 'direct')).toEqual(['4..4 4K', '6..6 4K']);
      const exit = vm.vcpus[0].access({ gpa: 5 * PAGE, kind: 'read', private: true });
      expect(exit).toMatchObject({ reason: 'memory_fault', errno: 'EHWPOISON', flags: 8, gpa: 5n * 4096n });
      expect(vm.vcpus[0].access({ gpa: 6 * PAGE, kind: 'read', private: true }).reason).toBe('done');
    },
  );
});
