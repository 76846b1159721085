// In-place conversion of guest_memfd (filterForm gmem-in-place, spec 11.2 and 7.6): attributes of the file, refusals, what a
// conversion invalidates, and the scenario that shows the bug of July 2026 beside its fix.

import { describe, expect, test } from 'vitest';
import {
  type CreateVmOptions,
  createVm,
  createVmSync,
  type GuestMemfd,
  KvmError,
  runScenario,
  type Vm,
} from '../../src/index.ts';
import { isDebugBuild, PAGE, SLOT_HVA } from '../support/make-vm.ts';
import { countersMoved, eventsOf, leavesOf, refusalOf } from '../support/observe.ts';

const PRIVATE = 8;
const MMAP = 1;
const INIT_SHARED = 2;
const NPAGES = 1024;

interface Made {
  vm: Vm;
  file: GuestMemfd;
}
/** A file of 1,024 pages, bound at gfn 0x1000 from its first page on. */
function make(options: Partial<CreateVmOptions> = {}, flags = MMAP | INIT_SHARED): Made {
  const vm = createVmSync({
    type: 'sw-protected',
    kernel: 'linux-6.16',
    filterForm: 'gmem-in-place',
    memory: 2 ** 30,
    traceRecords: 65_536,
    debug: isDebugBuild,
    ...options,
  });
  const file = vm.createGuestMemfd({ size: NPAGES * PAGE, flags });
  bind(vm, file, 0x1000, 0, NPAGES);
  vm.trace();
  return { vm, file };
}
const bind = (vm: Vm, file: GuestMemfd, gfn: number, pgoff: number, npages: number, slot = 0) =>
  vm.setUserMemoryRegion2({
    slot,
    flags: 4,
    guestPhysAddr: gfn * PAGE,
    memorySize: npages * PAGE,
    userspaceAddr: SLOT_HVA + gfn * PAGE,
    guestMemfd: file.fd,
    guestMemfdOffset: pgoff * PAGE,
  });
const convert = (file: GuestMemfd, start: number, end: number, attributes: number) =>
  file.setMemoryAttributes({ offset: start * PAGE, size: (end - start) * PAGE, attributes });
const shared = (vm: Vm) => (vm.options.type === 'tdx' ? 2 ** 47 : 0);
const touch = (vm: Vm, page: number, count: number, isPrivate: boolean) => {
  const gpa = (0x1000 + page) * PAGE;
  if (isPrivate && vm.options.type === 'tdx') vm.vcpus[0].accept({ gpa, size: count * PAGE });
  return vm.vcpus[0].access({ gpa: isPrivate ? gpa : gpa + shared(vm), kind: 'write', count, private: isPrivate })
    .reason;
};
const attributesOf = (vm: Vm, ...pages: number[]) => pages.map((page) => vm.attributesOf(0x1000 + page));

describe('the attributes belong to the file', () => {
  test('a file is private throughout, unless it is made with INIT_SHARED', () => {
    expect(attributesOf(make({}, 0).vm, 0, 1023)).toEqual([PRIVATE, PRIVATE]);
    expect(attributesOf(make().vm, 0, 1023)).toEqual([0, 0]);
  });

  test('they stay with the file when it is bound elsewhere, and its old gfns have none', () => {
    const { vm, file } = make();
    convert(file, 10, 600, PRIVATE);
    expect(attributesOf(vm, 9, 10, 599, 600)).toEqual([0, PRIVATE, PRIVATE, 0]);
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: 0 });
    expect(attributesOf(vm, 10)).toEqual([0]);
    convert(file, 590, 700, 0);
    bind(vm, file, 0x5003, 500, 200);
    expect([0x5003, 0x5003 + 89, 0x5003 + 90].map((gfn) => vm.attributesOf(gfn))).toEqual([PRIVATE, PRIVATE, 0]);
    expect(vm.isMixed(0, 2, 0x5003)).toBe(false);
  });

  test('two bindings of one file show its pages each, under one invalidation', () => {
    const { vm, file } = make();
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: 0 });
    bind(vm, file, 0x2000, 0, 100, 1);
    bind(vm, file, 0x3000, 100, 100, 2);
    const { seq } = vm.invalidate;
    convert(file, 90, 110, PRIVATE);
    expect([0x2059, 0x205a, 0x3009, 0x300a].map((gfn) => vm.attributesOf(gfn))).toEqual([0, PRIVATE, PRIVATE, 0]);
    expect(vm.invalidate.seq).toBe(seq + 1);
  });

  test('a whole aligned region allows huge pages again, a part of one does not', () => {
    const { vm, file } = make();
    convert(file, 0, 5, PRIVATE);
    expect(vm.isMixed(0, 2, 0x1000)).toBe(true);
    convert(file, 0, 512, PRIVATE);
    expect(vm.isMixed(0, 2, 0x1000)).toBe(false);
  });

  test('a range that has the value already changes nothing', () => {
    const { vm, file } = make();
    convert(file, 0, 100, PRIVATE);
    const before = vm.snapshot();
    convert(file, 20, 80, PRIVATE);
    expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
  });

  test('a range that no slot shows is stored without an invalidation', () => {
    const { vm, file } = make();
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: 0 });
    const { seq } = vm.invalidate;
    convert(file, 0, 100, PRIVATE);
    expect(vm.invalidate.seq).toBe(seq);
    bind(vm, file, 0x1000, 0, 200);
    expect(attributesOf(vm, 99, 100)).toEqual([PRIVATE, 0]);
  });

  test('the last close takes them along', () => {
    const { vm, file } = make({}, 0);
    file.close();
    expect(attributesOf(vm, 0)).toEqual([0]);
    expect(touch(vm, 0, 1, false)).toBe('memory_fault');
  });
});

describe('what is refused', () => {
  const other = (options: Partial<CreateVmOptions>) =>
    createVmSync({ memory: 2 ** 30, debug: isDebugBuild, type: 'tdx', kernel: 'linux-6.16', ...options });
  test('the VM’s own ioctl, under this form', () => {
    const { vm } = make();
    const call = () => vm.setMemoryAttributes({ address: 0, size: PAGE, attributes: 0 });
    expect(refusalOf(vm, call)).toBe('ENOTTY');
    expect(call).toThrow(/there is no such ioctl under this filterForm/);
  });
  test('the file’s, under every other', () => {
    const vm = other({});
    const file = vm.createGuestMemfd({ size: PAGE });
    expect(refusalOf(vm, () => convert(file, 0, 1, 0))).toBe('ENOTTY');
    expect(refusalOf(vm, () => vm.createGuestMemfd({ size: PAGE, flags: MMAP }))).toBe('EINVAL');
  });
  test('another kernel, an unknown filter', () => {
    expect(() => other({ kernel: 'linux-6.12', filterForm: 'gmem-in-place' })).toThrow(
      /^filterForm is "gmem-in-place", and kernel is "linux-6.12": it must be "linux-6.16"/,
    );
    expect(() => other({ gmemInvalidateFilter: 'both' as never })).toThrow(/^gmemInvalidateFilter is "both"/);
  });
  test.each<[string, { offset?: number; size?: number; attributes?: number; flags?: number }]>([
    ['flags', { flags: 1 }],
    ['unknown attributes', { attributes: 4 }],
    ['size 0', { size: 0 }],
    ['an offset in a page', { offset: 100 }],
    ['a size in a page', { size: 100 }],
    ['beyond the file', { offset: (NPAGES - 1) * PAGE, size: 2 * PAGE }],
  ])('%s', (_, args) => {
    const { vm, file } = make();
    const all = { offset: 0, size: PAGE, attributes: PRIVATE, ...args };
    expect(refusalOf(vm, () => file.setMemoryAttributes(all))).toBe('EINVAL');
  });
  test('a closed file', () => {
    const { vm, file } = make();
    file.close();
    expect(refusalOf(vm, () => convert(file, 0, 1, PRIVATE))).toBe('EBADF');
  });

  test('to private, while someone holds a folio: EAGAIN and where; the host’s mappings are gone, nothing else', () => {
    const { vm, file } = make();
    file.hostAccess({ offset: 0, length: 20 * PAGE });
    file.elevateRefcount(7);
    file.elevateRefcount(9);
    const refused = () => convert(file, 5, 30, PRIVATE);
    let error: unknown;
    const moved = countersMoved(vm, () => {
      try {
        refused();
      } catch (thrown) {
        error = thrown;
      }
    });
    expect(error).toBeInstanceOf(KvmError);
    expect(error).toMatchObject({ code: 'EAGAIN', errorOffset: 7n * 4096n });
    // Pages 5 to 19 were mapped.
    expect(moved).toEqual({ gmem_host_pages_unmapped: 15 });
    expect(attributesOf(vm, 5)).toEqual([0]);
    file.dropRefcount(7);
    expect(refused).toThrow(/EAGAIN: someone else holds a reference/);
    file.dropRefcount(9);
    refused();
    expect(attributesOf(vm, 4, 5, 29, 30)).toEqual([0, PRIVATE, PRIVATE, 0]);
    // To shared nobody asks.
    file.elevateRefcount(7);
    convert(file, 0, 30, 0);
  });

  test('references of pages that are not there', () => {
    const { vm, file } = make();
    expect(refusalOf(vm, () => file.elevateRefcount(3))).toBe('ENOENT');
    expect(refusalOf(vm, () => file.dropRefcount(NPAGES))).toBe('EINVAL');
  });

  test('host accesses of private pages, beyond the file, and of a file without MMAP', () => {
    const { vm, file } = make();
    convert(file, 10, 20, PRIVATE);
    expect(refusalOf(vm, () => file.hostAccess({ offset: 12 * PAGE, length: 1 }))).toBe('EFAULT');
    expect(refusalOf(vm, () => file.hostAccess({ offset: NPAGES * PAGE, length: 1 }))).toBe('EFAULT');
    // What comes before the private page was touched.
    expect(() => file.hostAccess({ offset: 8 * PAGE, length: 5 * PAGE })).toThrow(/EFAULT/);
    expect(vm.stats().gmem_pages_allocated).toBe(2);
    const unmappable = make({}, INIT_SHARED);
    expect(refusalOf(unmappable.vm, () => unmappable.file.hostAccess({ offset: 0, length: 1 }))).toBe('ENODEV');
  });

  test('the host’s accesses of a page with a memory error: it is mapped no more, and can’t be', () => {
    const { vm, file } = make();
    file.hostAccess({ offset: 0, length: 20 * PAGE });
    file.memoryError(7);
    expect(refusalOf(vm, () => file.hostAccess({ offset: 7 * PAGE, length: 1 }))).toBe('EFAULT');
    expect(() => file.hostAccess({ offset: 5 * PAGE, length: 5 * PAGE })).toThrow(/EFAULT/);
    // Of pages 0 to 19 all but page 7.
    expect(countersMoved(vm, () => convert(file, 0, 20, PRIVATE))).toMatchObject({ gmem_host_pages_unmapped: 19 });
  });

  test('a conversion that finds no memory, before its first change', () => {
    const { vm, file } = make();
    touch(vm, 0, 900, false);
    const before = vm.snapshot();
    vm.failReservation(1);
    expect(() => convert(file, 3, 700, PRIVATE)).toThrow(/ENOMEM/);
    expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
    convert(file, 3, 700, PRIVATE);
    expect(vm.check()).toEqual([]);
  });
});

describe('faults', () => {
  test('a shared one is served from the file, as a private one is', () => {
    const { vm, file } = make();
    // No host memory stands behind the slot.
    expect(touch(vm, 0, 4, false)).toBe('done');
    expect(vm.stats().gmem_pages_allocated).toBe(4);
    convert(file, 0, 4, PRIVATE);
    expect(touch(vm, 0, 4, true)).toBe('done');
    expect(vm.stats().gmem_pages_allocated).toBe(4);
    expect(vm.check()).toEqual([]);
  });
  test('on SNP only a private one assigns the page, and a conversion to shared takes it back', () => {
    const { vm, file } = make({ type: 'snp' });
    touch(vm, 0, 4, false);
    expect(file.rmp(0)).toEqual({ assigned: false });
    convert(file, 0, 4, PRIVATE);
    touch(vm, 0, 4, true);
    expect(file.rmp(0)).toMatchObject({ assigned: true });
    const moved = countersMoved(vm, () => convert(file, 0, 2, 0));
    expect(moved).toMatchObject({ rmp_updates_shared_4k: 2, cache_flushes: 2, private_pages_lost: 2 });
    expect(file.rmp(0)).toEqual({ assigned: false });
    expect(vm.check()).toEqual([]);
  });
});

describe('what is invalidated', () => {
  /** A TD whose pages 0 to 9 are private and accepted, 10 to 19 shared, all of them mapped. */
  function mixed(gmemInvalidateFilter: 'by-content' | 'by-target'): Made {
    const made = make({ type: 'tdx', gmemInvalidateFilter });
    convert(made.file, 0, 10, PRIVATE);
    touch(made.vm, 0, 10, true);
    touch(made.vm, 10, 10, false);
    made.vm.trace();
    return made;
  }
  const filters = ({ vm }: Made) => eventsOf(vm, 'unmap_gfn_range').map(({ attrFilter }) => attrFilter);

  test.each([
    ['by-content', 0, 20, PRIVATE, 3, 10],
    ['by-content', 10, 20, PRIVATE, 1, 0],
    ['by-content', 0, 10, 0, 2, 10],
    ['by-content', 5, 20, 0, 3, 5],
    ['by-target', 0, 20, PRIVATE, 1, 0],
    ['by-target', 10, 20, PRIVATE, 1, 0],
    ['by-target', 0, 20, 0, 2, 10],
  ] as const)(
    '%s, pages %i to %i to %i: filter %i, %i pages lost',
    (filter, start, end, attributes, expected, lost) => {
      const made = mixed(filter);
      convert(made.file, start, end, attributes);
      const seen = filters(made);
      expect(seen.length).toBeGreaterThan(0);
      expect(new Set(seen)).toEqual(new Set([expected]));
      expect(made.vm.losses().privatePagesLost).toBe(lost);
      expect(made.vm.check()).toEqual([]);
    },
  );

  // A hole goes by what it holds, whatever the option says.
  test.each([
    [0, 10, 2],
    [10, 20, 1],
    [5, 15, 3],
  ])('a hole over pages %i to %i: filter %i', (start, end, expected) => {
    const made = mixed('by-target');
    made.file.punchHole(start * PAGE, (end - start) * PAGE);
    expect(new Set(filters(made))).toEqual(new Set([expected]));
    expect(made.vm.check()).toEqual([]);
    made.file.close();
    expect(leavesOf(made.vm)).toEqual([]);
    expect(leavesOf(made.vm, 'mirror')).toEqual([]);
  });

  test('a fault between zap and store retries; pieces end as one run', () => {
    const { vm, file } = mixed('by-target');
    const pieces = vm.steps({ stopAt: ['attributes-zapped', 'attributes-stored'] }, () =>
      convert(file, 0, 20, PRIVATE),
    );
    expect(pieces.next().value).toEqual({ at: 'attributes-zapped' });
    expect(attributesOf(vm, 15)).toEqual([0]);
    expect(touch(vm, 15, 1, false)).toBe('retry');
    expect(pieces.next().value).toEqual({ at: 'attributes-stored' });
    expect(attributesOf(vm, 15)).toEqual([PRIVATE]);
    expect(pieces.next().done).toBe(true);
    expect(leavesOf(vm)).toEqual([]);
    expect(vm.check()).toEqual([]);
  });

  // The kernels' folios are pages: ours, as mixed() of the VM's own attributes has it (spec 5.4).
  test('while a part of a 2M folio is converted, no 2M leaf comes to span it', () => {
    const vm = createVmSync({
      type: 'sw-protected',
      kernel: 'linux-6.16',
      filterForm: 'gmem-in-place',
      memory: 2 ** 30,
      debug: isDebugBuild,
    });
    const file = vm.createGuestMemfd({ size: NPAGES * PAGE, folioSize: '2M' });
    bind(vm, file, 0x1000, 0, NPAGES);
    const pieces = vm.steps({ stopAt: ['attributes-zapped'] }, () => convert(file, 0, 1, 0));
    pieces.next();
    expect(vm.invalidate).toMatchObject({ start: 0x1000, end: 0x1200 });
    expect(touch(vm, 511, 1, true)).toBe('retry');
    expect(touch(vm, 512, 1, true)).toBe('done');
    expect(pieces.next().done).toBe(true);
    touch(vm, 511, 1, true);
    expect(leavesOf(vm)).toEqual([`${0x11ff}..${0x11ff} 4K`, `${0x1200}..${0x13ff} 2M`]);
    expect(vm.check()).toEqual([]);
  });

  test('a restored VM has the attributes it had', () => {
    const { vm, file } = mixed('by-target');
    const snapshot = vm.snapshot();
    convert(file, 0, 1024, PRIVATE);
    vm.restore(snapshot);
    expect(attributesOf(vm, 9, 10)).toEqual([PRIVATE, 0]);
    convert(vm.guestMemfds[0], 0, 10, 0);
    expect(attributesOf(vm, 9, 10)).toEqual([0, 0]);
  });
});

// By hand: 1 GiB is 262,144 pages. The payload is 16 MiB = 4,096 pages, accepted; 8 MiB = 2,048 pages behind it are mapped
// shared. One zap over a mixed range by content meets both trees; each private page costs one BLOCK, TRACK, kick, REMOVE
// and WBINVD, and must be accepted again.
test('the scenario gmem-in-place-filter: the payload is destroyed by content, and kept by target', async () => {
  const { variants, failures } = await runScenario('gmem-in-place-filter', {
    createVm: (options) => createVm({ ...options, debug: isDebugBuild }),
  });
  expect(failures).toBeUndefined();
  const counts = variants.map(({ name, counters, losses }) => [
    name,
    counters.leafs_zapped_direct_4k,
    counters.leafs_zapped_mirror_4k,
    counters['TDH.MEM.RANGE.BLOCK'],
    counters['TDH.PHYMEM.PAGE.WBINVD'],
    losses.privatePagesLost,
    losses.pagesToAccept,
    counters.remote_tlb_flush_requests,
  ]);
  expect(counts).toEqual([
    ['by-content', 2048, 4096, 4096, 4096, 4096, 4096, 1],
    ['by-target', 2048, 0, 0, 0, 0, 0, 1],
  ]);
});
