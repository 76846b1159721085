// A snapshot is the VM: restored into a fresh instance it goes on as the first one does, byte by byte.

import { describe, expect, test } from 'vitest';
import { type CreateVmOptions, createVmSync, KvmError, type StopPoint, type Vm } from '../../src/index.ts';
import { eventLines } from '../support/events.ts';
import { isDebugBuild, PAGE } from '../support/make-vm.ts';
import { FIRST, FIRST_PAGES, hvaOf, prepared, SECOND } from '../support/prepared-vm.ts';
import { randomFrom } from '../support/random.ts';

const TYPES = ['default', 'sw-protected', 'snp', 'tdx'] as const;

function fresh(vm: Vm, change: Partial<CreateVmOptions> = {}): Vm {
  return createVmSync({ ...vm.options, ...change });
}
/** Another VM with the state of `vm`. */
function copyOf(vm: Vm): Vm {
  const copy = fresh(vm);
  copy.restore(vm.snapshot());
  return copy;
}
function expectSame(one: Vm, other: Vm): void {
  expect(Buffer.compare(one.snapshot(), other.snapshot())).toBe(0);
}

/** The trace, a run of entries as one line each: where a piece ends, a run ends. */
const linesOf = (vm: Vm) => vm.trace().flatMap((event) => eventLines(event as never));

/** `steps` random calls; refusals are part of it. */
function randomCalls(vm: Vm, seed: string, steps: number): void {
  const random = randomFrom(seed);
  const integer = (below: number) => Math.floor(random() * below);
  const shared = vm.options.type === 'tdx' ? 2 ** 47 : 0;
  const calls = [
    () => vm.vcpus[integer(2)].access({ gpa: shared + (FIRST + integer(1700)) * PAGE, kind: 'write', private: false }),
    () => vm.vcpus[0].preFaultMemory({ gpa: (SECOND + integer(900)) * PAGE, size: (1 + integer(200)) * PAGE }),
    () =>
      vm.setMemoryAttributes({ address: (SECOND + integer(900)) * PAGE, size: 99 * PAGE, attributes: integer(2) * 8 }),
    () => vm.guestMemfds[0]?.punchHole(integer(900) * PAGE, 33 * PAGE),
    () =>
      vm.unmapGfnRange({ slot: 0, start: FIRST + integer(1500), end: FIRST + 1501, onlyShared: true, attrFilter: 1 }),
    () => vm.host.madvise({ hva: hvaOf(FIRST + integer(1500)), length: 70 * PAGE, advice: 'DONTNEED' }),
    () => vm.getDirtyLog({ slot: 0 }),
    () => vm.vcpus[1].beginFault({ gpa: shared + (FIRST + integer(1600)) * PAGE, kind: 'read', private: false }),
    () => vm.vcpus[1].finishFault(integer(3)),
    () => vm.vcpus[0].access({ gpa: 2 ** 40 + integer(50) * PAGE, kind: 'read', private: false }),
  ];
  for (let step = 0; step < steps; step++) {
    try {
      calls[integer(calls.length)]();
    } catch (error) {
      if (!(error instanceof KvmError)) throw error;
    }
  }
}

describe.each(TYPES)('%s', (type) => {
  test('a copy made at any point goes on with the same bytes', () => {
    for (let seed = 0; seed < 12; seed++) {
      const vm = prepared({ type, traceRecords: 50_000 }, seed % 2 === 0 ? 'thp' : 'anon4k');
      randomCalls(vm, `before ${seed}`, 7 * seed);
      const copy = copyOf(vm);
      expectSame(copy, vm);
      for (const one of [vm, copy]) randomCalls(one, `after ${seed}`, 40);
      expectSame(copy, vm);
      expect(copy.stats()).toEqual(vm.stats());
      expect(copy.leafs()).toEqual(vm.leafs());
    }
  });

  test('the same calls on two VMs give the same bytes', () => {
    const [one, other] = [1, 2].map(() => {
      const vm = prepared({ type, traceRecords: 50_000 }, 'thp');
      for (const file of vm.guestMemfds) expect(file.fd).toBeGreaterThan(2);
      randomCalls(vm, 'same', 120);
      return vm;
    });
    // The descriptors of two VMs of one process differ: they are all that does.
    if (type === 'default') expectSame(one, other);
    expect(other.stats()).toEqual(one.stats());
    expect(other.trace()).toEqual(one.trace());
    expect(other.memoryUsed).toBe(one.memoryUsed);
  });

  test('the debug and the release build give the same trace', () => {
    const [one, other] = [false, true].map((debug) => {
      const vm = prepared({ type, debug, traceRecords: 100_000 }, 'thp');
      randomCalls(vm, 'builds', 120);
      return vm;
    });
    expect(other.stats()).toEqual(one.stats());
    expect(linesOf(other)).toEqual(linesOf(one));
  });
});

test('a fault goes on in the copy between its two steps', () => {
  const vm = prepared({ type: 'default' }, 'anon4k');
  const id = vm.vcpus[0].beginFault({ gpa: (FIRST + 1300) * PAGE, kind: 'write' });
  const copy = copyOf(vm);
  expect(vm.vcpus[0].finishFault(id)).toBe('fixed');
  expect(copy.vcpus[0].finishFault(id)).toBe('fixed');
  expectSame(copy, vm);
  expect(() => copy.vcpus[0].finishFault(id)).toThrow(KvmError);
});

test('a stale fault is stale in the copy, too', () => {
  const vm = prepared({ type: 'default' }, 'thp');
  const id = vm.vcpus[0].beginFault({ gpa: (FIRST + 1300) * PAGE, kind: 'write' });
  vm.zapGfnRange(FIRST, FIRST + 1500);
  const copy = copyOf(vm);
  for (const one of [vm, copy]) expect(one.vcpus[0].finishFault(id)).toBe('retry');
  expectSame(copy, vm);
});

test('a FROZEN entry thaws in the copy', () => {
  const vm = prepared({ type: 'tdx' }, 'thp');
  const gpa = (SECOND + 750) * PAGE;
  const id = vm.vcpus[0].beginFault({ gpa, kind: 'write', private: true });
  expect(vm.vcpus[0].finishFault(id)).toBe('frozen');
  const copy = copyOf(vm);
  expect(copy.walk(gpa).at(-1)?.spte.class).toBe('frozen');
  for (const one of [vm, copy]) expect(one.vcpus[0].finishFault(id)).toBe('fixed');
  expectSame(copy, vm);
});

const paused: [what: string, type: (typeof TYPES)[number], stop: StopPoint | number, call: (vm: Vm) => unknown][] = [
  ['a budget', 'default', 5, (vm) => vm.unmapGfnRange({ slot: 0, start: FIRST, end: FIRST + FIRST_PAGES })],
  ['a budget on the way down', 'default', 2, (vm) => vm.zapGfnRange(FIRST, FIRST + FIRST_PAGES)],
  [
    'attributes-zapped',
    'tdx',
    'attributes-zapped',
    (vm) => vm.setMemoryAttributes({ address: (SECOND + 50) * PAGE, size: 300 * PAGE, attributes: 0 }),
  ],
  [
    'attributes-stored',
    'sw-protected',
    'attributes-stored',
    (vm) => vm.setMemoryAttributes({ address: (SECOND + 50) * PAGE, size: 300 * PAGE, attributes: 0 }),
  ],
  ['gmem-zapped', 'snp', 'gmem-zapped', (vm) => vm.guestMemfds[0].punchHole(111 * PAGE, 300 * PAGE)],
  [
    'slot-invalid',
    'default',
    'slot-invalid',
    (vm) =>
      vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: FIRST * PAGE, memorySize: 0, userspaceAddr: hvaOf(FIRST) }),
  ],
  ['notifier-started', 'default', 'notifier-started', (vm) => vm.host.munmap({ hva: hvaOf(FIRST), length: 50 * PAGE })],
];

test.each(paused)('an operation paused at %s is finished in the copy', (_, type, stop, call) => {
  const vm = prepared({ type, traceRecords: 50_000 }, 'anon4k');
  const options = typeof stop === 'number' ? { budget: stop } : { stopAt: [stop] };
  const pieces = vm.steps(options, () => call(vm));
  const copies: Vm[] = [];
  let count = 0;
  for (let piece = pieces.next(); !piece.done; piece = pieces.next()) {
    count++;
    // Each pause, up to a few: the copy finishes by itself.
    if (count > 4) continue;
    const copy = copyOf(vm);
    expect(copy.paused).toBe(true);
    const rest = copyOf(vm);
    expect(copy.finishPaused()).toBeGreaterThanOrEqual(0);
    expect(copy.paused).toBe(false);
    rest.finishPaused();
    expectSame(copy, rest);
    copies.push(copy);
  }
  expect(count).toBeGreaterThan(0);
  for (const copy of copies) {
    expect(copy.stats()).toEqual(vm.stats());
    expect(linesOf(copy)).toEqual(linesOf(copyOf(vm)));
    expect(copy.leafs()).toEqual(vm.leafs());
  }
});
test('restore() ends an operation in pieces of the state that it replaces', () => {
  const vm = prepared({ type: 'default' }, 'anon4k');
  const before = vm.snapshot();
  const pieces = vm.steps({ budget: 10 }, () => vm.zapGfnRange(FIRST, FIRST + FIRST_PAGES));
  expect(pieces.next().done).toBe(false);
  vm.restore(before);
  expect(vm.paused).toBe(false);
  expect(() => pieces.next()).toThrow(/restore\(\) has replaced the operation/);
  expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
  vm.zapGfnRange(FIRST, FIRST + FIRST_PAGES);
});

test('a restored VM has the descriptors of its snapshot', () => {
  const vm = prepared({ type: 'snp' }, 'thp');
  const copy = copyOf(vm);
  const [file] = copy.guestMemfds;
  expect(file.fd).toBe(vm.guestMemfds[0].fd);
  file.punchHole(0, PAGE);
  copy.setUserMemoryRegion2({
    slot: 2,
    guestPhysAddr: SECOND * PAGE,
    memorySize: 0,
    userspaceAddr: hvaOf(SECOND),
  });
  copy.setUserMemoryRegion2({
    slot: 7,
    flags: 4,
    guestPhysAddr: SECOND * PAGE,
    memorySize: 16 * PAGE,
    userspaceAddr: hvaOf(SECOND),
    guestMemfd: file.fd,
  });
});

describe('restore() refuses', () => {
  const vm = prepared({ type: 'tdx', traceRecords: 1000 }, 'thp');
  const before = vm.snapshot();
  const refuses = (snapshot: Uint8Array, why: RegExp) => {
    expect(() => vm.restore(snapshot)).toThrow(RangeError);
    expect(() => vm.restore(snapshot)).toThrow(why);
    expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
  };
  const changed = (word: number, value: number) => {
    const copy = before.slice();
    new Uint32Array(copy.buffer)[word] = value;
    return copy;
  };

  test.each([0, 1, 31])('a snapshot cut to %i bytes', (bytes) => refuses(before.slice(0, bytes), /it is cut short/));
  test.each([32, 100, before.length - 1])('a snapshot cut to %i bytes', (bytes) =>
    refuses(
      before.slice(0, bytes),
      /^the snapshot of \d+ bytes cannot be restored: it (is cut short|should have \d+ bytes)/,
    ),
  );
  test('one that is too long', () => {
    const long = new Uint8Array(before.length + 4);
    long.set(before);
    refuses(long, /it should have \d+ bytes/);
  });
  test('garbage', () => {
    const random = randomFrom('garbage');
    refuses(
      Uint8Array.from({ length: 5000 }, () => Math.floor(random() * 256)),
      /it is no snapshot of eptsim/,
    );
  });
  test('another version', () => refuses(changed(1, 99), /it has version 99, not \d+/));
  test('another layout', () => refuses(changed(2, 1), /another build with another memory layout wrote it/));
  test('another number of regions', () => refuses(changed(4, 3), /it lists 3 regions, not \d+/));
  test('another build', () => {
    refuses(fresh(vm, { debug: !isDebugBuild }).snapshot(), /debug and release builds/);
  });
  test.each([
    ['memory', { memory: 2n ** 36n }, /its VM had a memory of \d+ pages of 64 KiB, this one has \d+/],
    ['slightly other memory', { memory: 2n ** 30n + 4096n }, /its VM was created with other options/],
    ['type', { type: 'snp', td: undefined }, /its VM was created with other options/],
    ['kernel', { kernel: 'linux-6.16' }, /its VM was created with other options/],
    ['filterForm', { filterForm: 'none' }, /its VM was created with other options/],
    ['gpaw', { gpaw: 52 }, /its VM was created with other options/],
    ['maxphyaddr', { maxphyaddr: 46 }, /its VM was created with other options/],
    ['vcpus', { vcpus: 3 }, /its VM was created with other options/],
  ] as [string, Partial<CreateVmOptions>, RegExp][])('a VM of another %s', (_, change, why) => {
    refuses(fresh(vm, change).snapshot(), why);
  });
  test('a list of regions that is wrong', () => {
    const regions = new Uint32Array(before.buffer)[4];
    for (let index = 0; index < regions; index++) {
      const start = 8 + index * 2;
      const words = new Uint32Array(before.buffer);
      refuses(changed(start, words[start] + 4), /its region \d+ is at/);
      // The total stays: what one region gains the next one loses.
      if (index + 1 === regions) continue;
      const copy = before.slice();
      const view = new Uint32Array(copy.buffer);
      view[start + 1] += 4;
      view[start + 3] -= 4;
      refuses(copy, /its region \d+ should have \d+ bytes|it should have/);
    }
  });
  test('nothing of its own, wherever its bytes stand', () => {
    const shifted = new Uint8Array(before.length + 1);
    shifted.set(before, 1);
    vm.restore(shifted.subarray(1));
    expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
  });
});
