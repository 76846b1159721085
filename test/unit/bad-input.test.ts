// Every public entry point with what it can't take: a clear error, and the VM exactly as it was.

import { describe, expect, test } from 'vitest';
import {
  type CreateVmOptions,
  closeFd,
  createVm,
  createVmSync,
  GuestMemfd,
  HostMemory,
  KvmError,
  openFd,
  TdxModule,
  Vcpu,
  Vm,
} from '../../src/index.ts';
import { isDebugBuild, PAGE, SLOT_HVA } from '../support/make-vm.ts';

const TOO_LARGE = 2n ** 64n;
const GFN_LIMIT = 2 ** 52;

interface Targets {
  vm: Vm;
  vcpu: Vcpu;
  host: HostMemory;
  file: GuestMemfd;
}

/** A VM with two slots, the second with a guest_memfd; some of it is mapped. */
function makeTargets(type: 'sw-protected' | 'tdx' = 'sw-protected'): Targets {
  const vm = createVmSync({ type, memory: 2 ** 30, vcpus: 2, debug: isDebugBuild, traceRecords: 1000 });
  vm.host.mmap({ kind: 'anon4k', hva: SLOT_HVA, length: 4096 * PAGE });
  vm.setUserMemoryRegion({ slot: 0, flags: 1, guestPhysAddr: 0, memorySize: 512 * PAGE, userspaceAddr: SLOT_HVA });
  const file = vm.createGuestMemfd({ size: 256 * PAGE });
  vm.setUserMemoryRegion2({
    slot: 1,
    flags: 4,
    guestPhysAddr: 1024 * PAGE,
    memorySize: 128 * PAGE,
    userspaceAddr: SLOT_HVA + 1024 * PAGE,
    guestMemfd: file.fd,
  });
  vm.setMemoryAttributes({ address: 1024 * PAGE, size: 64 * PAGE, attributes: 8 });
  const shared = type === 'tdx' ? 2 ** 47 : 0;
  vm.vcpus[0].access({ gpa: shared, kind: 'write', count: 300, private: false });
  vm.vcpus[0].preFaultMemory({ gpa: 1024 * PAGE, size: 32 * PAGE });
  return { vm, vcpu: vm.vcpus[0], host: vm.host, file };
}

const isSame = (vm: Vm, before: Uint8Array) => Buffer.compare(vm.snapshot(), before) === 0;

type Bad = [what: string, call: (targets: Targets) => unknown, message: RegExp];

/** What no u64 argument takes. `call` gets the value in the argument's place; `refused` names it. */
function u64(name: string, call: (targets: Targets, value: never) => unknown): Bad[] {
  const bad = (value: unknown, why: string): Bad => [
    `${name} ${typeof value === 'bigint' ? `${value}n` : String(value)}`,
    (targets) => call(targets, value as never),
    new RegExp(`^${name.replace(/[[\].]/g, '\\$&')} is .*${why}`),
  ];
  return [
    bad('4096', 'must be a number or a bigint'),
    bad(null, 'must be a number or a bigint'),
    bad({}, 'must be a number or a bigint'),
    bad(Number.NaN, 'NaN: it must be an integer'),
    bad(Number.POSITIVE_INFINITY, 'Infinity: it must be an integer'),
    bad(0.5, '0.5: it must be an integer'),
    bad(-4096, '-4096: it must not be negative'),
    bad(-1n, '-1: it must be within 0 and 2\\^64 - 1'),
    bad(TOO_LARGE, '18446744073709551616: it must be within 0 and 2\\^64 - 1'),
    bad(2 ** 64, '18446744073709551616: it must be within 0 and 2\\^64 - 1'),
  ];
}

/** What no number from `low` to `high` takes. */
function number(name: string, low: number, high: number, call: (targets: Targets, value: never) => unknown): Bad[] {
  const bad = (value: unknown, why: string): Bad => [
    `${name} ${typeof value === 'bigint' ? `${value}n` : String(value)}`,
    (targets) => call(targets, value as never),
    new RegExp(`^${name} is .*${why}`),
  ];
  const limits = `must be within ${low} and ${high}`;
  return [
    bad('1', 'must be a number'),
    bad(1n, 'must be a number'),
    bad(null, 'must be a number'),
    bad(Number.NaN, 'NaN: it must be an integer'),
    bad(Number.NEGATIVE_INFINITY, 'must be an integer'),
    bad(low + 0.5, 'must be an integer'),
    bad(low - 1, limits),
    bad(high + 1, limits),
  ].filter(([what]) => !what.endsWith(String(high)) || Number.isSafeInteger(high + 1));
}

/** What no object of arguments is. */
function args(name: string, call: (targets: Targets, value: never) => unknown): Bad[] {
  return [undefined, null, 7, 'x'].map((value) => [
    `${name} ${String(value)}`,
    (targets) => call(targets, value as never),
    new RegExp(`^${name} is ${value}: it must be an object`),
  ]);
}

const refused = (what: string, code: string, call: (targets: Targets) => unknown): Bad => [
  `${what}: ${code}`,
  call,
  new RegExp(`\\): ${code}: `),
];

const slotArgs = { slot: 2, guestPhysAddr: 2048 * PAGE, memorySize: 16 * PAGE, userspaceAddr: SLOT_HVA };
function regionRows(call: 'setUserMemoryRegion' | 'setUserMemoryRegion2'): Bad[] {
  const set = (targets: Targets, change: object) => targets.vm[call]({ ...slotArgs, ...change });
  return [
    ...args('args', (targets, value) => targets.vm[call](value)),
    ...number('slot', 0, 2 ** 32 - 1, (targets, value) => set(targets, { slot: value })),
    ...number('flags', 0, 2 ** 32 - 1, (targets, value) => set(targets, { flags: value })).filter(
      ([what]) => what !== 'flags null',
    ),
    ...u64('guestPhysAddr', (targets, value) => set(targets, { guestPhysAddr: value })),
    ...u64('memorySize', (targets, value) => set(targets, { memorySize: value })),
    ...u64('userspaceAddr', (targets, value) => set(targets, { userspaceAddr: value })),
    ['guestPhysAddr missing', (targets) => set(targets, { guestPhysAddr: undefined }), /^guestPhysAddr is undefined/],
    refused('unaligned gpa', 'EINVAL', (targets) => set(targets, { guestPhysAddr: 2048 * PAGE + 1 })),
    refused('unaligned size', 'EINVAL', (targets) => set(targets, { memorySize: 1000 })),
    refused('unaligned hva', 'EINVAL', (targets) => set(targets, { userspaceAddr: 7 })),
    refused('overlapping', 'EEXIST', (targets) => set(targets, { guestPhysAddr: 511 * PAGE })),
    refused('wrapping', 'EINVAL', (targets) => set(targets, { guestPhysAddr: TOO_LARGE - 4096n })),
    refused('unknown id to delete', 'EINVAL', (targets) => set(targets, { slot: 77, memorySize: 0 })),
    refused('id too large', 'EINVAL', (targets) => set(targets, { slot: 32764 })),
    refused('address space too large', 'EINVAL', (targets) => set(targets, { slot: 0x70000 })),
    refused('unknown flags', 'EINVAL', (targets) => set(targets, { flags: 64 })),
    refused('another size', 'EINVAL', (targets) => set(targets, { slot: 0, guestPhysAddr: 0 })),
    refused('2^31 pages', 'EINVAL', (targets) => set(targets, { memorySize: 2 ** 43 })),
    refused('beyond `memory`', 'ENOMEM', (targets) => set(targets, { memorySize: 2 ** 30 })),
  ];
}

const inRange = { slot: 0, start: 10, end: 20 };
/** The fields that many ranges share with one, and their own. gfn-ranges.test.ts has what the engine refuses. */
function rangesRows(call: 'unmapGfnRanges' | 'ageGfnRanges'): Bad[] {
  const starts = Float64Array.of(10);
  const ranges = ({ vm }: Targets, change: object) => vm[call]({ slot: 0, starts, npages: 1, ...change });
  return [
    ...args('ranges', ({ vm }, value) => vm[call](value)),
    ...number('slot', 0, 65535, (targets, value) => ranges(targets, { slot: value })),
    ...number('npages', 1, GFN_LIMIT, (targets, value) => ranges(targets, { npages: value })),
    ['starts as an array', (targets) => ranges(targets, { starts: [10] }), /^starts must be a Float64Array/],
    ['look as an array', (targets) => ranges(targets, { look: [10] }), /^look must be a Float64Array/],
    ['into as a number', (targets) => ranges(targets, { into: 1 }), /^into is 1: it must be an object/],
    ['mayBlock 1', (targets) => ranges(targets, { mayBlock: 1 }), /^mayBlock is 1: it must be a boolean/],
    refused('no such slot', 'EINVAL', (targets) => ranges(targets, { slot: 9 })),
    refused('behind the slot', 'EINVAL', (targets) => ranges(targets, { npages: 2 ** 40 })),
  ];
}

function rangeRows(call: 'unmapGfnRange' | 'ageGfn' | 'testAgeGfn' | 'setSpteGfn'): Bad[] {
  const range = (targets: Targets, change: object) => targets.vm[call]({ ...inRange, end: 11, ...change });
  const flag = (name: string): Bad => [
    `${name} 1`,
    (targets) => range(targets, { [name]: 1 }),
    new RegExp(`^${name} is 1: it must be a boolean`),
  ];
  return [
    ...args('range', (targets, value) => targets.vm[call](value)),
    ...number('slot', 0, 65535, (targets, value) => range(targets, { slot: value })),
    ...number('asId', 0, 65535, (targets, value) => range(targets, { asId: value })).filter(
      ([what]) => what !== 'asId null',
    ),
    ...number('start', 0, GFN_LIMIT, (targets, value) => range(targets, { start: value })),
    ...number('end', 0, GFN_LIMIT, (targets, value) => range(targets, { end: value })),
    ...number('attrFilter', 0, 3, (targets, value) => range(targets, { attrFilter: value })).filter(
      ([what]) => what !== 'attrFilter null',
    ),
    ...u64('arg.attributes', (targets, value) => range(targets, { arg: { attributes: value } })),
    ['arg 8', (targets) => range(targets, { arg: 8 }), /^arg is 8: it must be an object/],
    ['arg.pte.writable 1', (targets) => range(targets, { arg: { pte: { writable: 1 } } }), /must be a boolean/],
    ...['mayBlock', 'onlyPrivate', 'onlyShared'].map(flag),
    refused('unknown slot', 'EINVAL', (targets) => range(targets, { slot: 9 })),
    refused('unknown address space', 'EINVAL', (targets) => range(targets, { asId: 1 })),
    refused('empty', 'EINVAL', (targets) => range(targets, { end: 10 })),
    refused('reversed', 'EINVAL', (targets) => range(targets, { end: 9 })),
    refused('beyond the slot', 'EINVAL', (targets) => range(targets, { start: 512, end: 513 })),
  ];
}

type HostRangeCall =
  | 'munmap'
  | 'migrate'
  | 'khugepaged'
  | 'ksm'
  | 'failHugePage'
  | 'invalidateRangeStart'
  | 'invalidateRangeEnd'
  | 'age';
const hostRange = { hva: SLOT_HVA, length: 4 * PAGE };
function hvaRows(
  call: (targets: Targets, change: object) => unknown,
  whole: (targets: Targets, value: never) => unknown,
) {
  return [
    ...args('args', whole),
    ...u64('hva', (targets, value) => call(targets, { hva: value })),
    ...u64('length', (targets, value) => call(targets, { length: value })),
  ];
}
function hostRows(name: HostRangeCall): Bad[] {
  return hvaRows(
    ({ host }, change) => host[name]({ ...hostRange, ...change }),
    ({ host }, value) => host[name](value),
  );
}
const unalignedHost = (name: HostRangeCall) =>
  refused('unaligned', 'EINVAL', ({ host }) => host[name]({ ...hostRange, hva: SLOT_HVA + 1 }));

const steps = (targets: Targets, options: never, call: () => unknown = () => undefined) => [
  ...targets.vm.steps(options, call),
];

/** Rows by method. A property that takes nothing has none. */
const vmRows: Record<string, Bad[]> = {
  constructor: [],
  paused: [],
  guestMemfds: [],
  traceDropped: [],
  rootCount: [],
  invalidate: [],
  dead: [],
  memoryUsed: [],
  stats: [],
  losses: [],
  trace: [],
  check: [],
  snapshot: [],
  flushRemoteTlbs: [],
  destroy: [],
  operate: [],
  access: [],
  result: [],
  gmemFallocate: [],
  gmemMemoryError: [],
  gmemRmp: [],
  gmemSetAttributes: [],
  gmemHostAccess: [],
  gmemPin: [],
  putIo: [],
  gmemClose: [],
  inspectSept: [],
  seamcallStatus: [],
  tdState: [],
  septLeafs: [],
  failReservation: [],
  spareBlocks: [],
  setUserMemoryRegion: regionRows('setUserMemoryRegion'),
  setUserMemoryRegion2: [
    ...regionRows('setUserMemoryRegion2'),
    ...number('guestMemfd', -(2 ** 31), 2 ** 32 - 1, ({ vm }, value) =>
      vm.setUserMemoryRegion2({ ...slotArgs, flags: 4, guestMemfd: value }),
    ).filter(([what]) => what !== 'guestMemfd null'),
    ...u64('guestMemfdOffset', ({ vm, file }, value) =>
      vm.setUserMemoryRegion2({ ...slotArgs, flags: 4, guestMemfd: file.fd, guestMemfdOffset: value }),
    ).filter(([what]) => what !== 'guestMemfdOffset null'),
    refused('an unopened fd', 'EBADF', ({ vm }) =>
      vm.setUserMemoryRegion2({ ...slotArgs, flags: 4, guestMemfd: 99_999 }),
    ),
    refused('no fd', 'EBADF', ({ vm }) => vm.setUserMemoryRegion2({ ...slotArgs, flags: 4 })),
    refused('an offset beyond the file', 'EINVAL', ({ vm, file }) =>
      vm.setUserMemoryRegion2({ ...slotArgs, flags: 4, guestMemfd: file.fd, guestMemfdOffset: 250 * PAGE }),
    ),
    refused('pages bound already', 'EINVAL', ({ vm, file }) =>
      vm.setUserMemoryRegion2({ ...slotArgs, flags: 4, guestMemfd: file.fd, guestMemfdOffset: 127 * PAGE }),
    ),
  ],
  setMemoryAttributes: [
    ...args('args', ({ vm }, value) => vm.setMemoryAttributes(value)),
    ...(['address', 'size', 'attributes'] as const).flatMap((name) =>
      u64(name, ({ vm }, value) => vm.setMemoryAttributes({ address: 0, size: PAGE, attributes: 8, [name]: value })),
    ),
    ...u64('flags', ({ vm }, value) =>
      vm.setMemoryAttributes({ address: 0, size: PAGE, attributes: 8, flags: value }),
    ).filter(([what]) => what !== 'flags null'),
    refused('unaligned', 'EINVAL', ({ vm }) => vm.setMemoryAttributes({ address: 5, size: PAGE, attributes: 8 })),
    refused('empty', 'EINVAL', ({ vm }) => vm.setMemoryAttributes({ address: 0, size: 0, attributes: 8 })),
    refused('wrapping', 'EINVAL', ({ vm }) =>
      vm.setMemoryAttributes({ address: TOO_LARGE - 4096n, size: 2 * PAGE, attributes: 8 }),
    ),
    refused('unknown attributes', 'EINVAL', ({ vm }) =>
      vm.setMemoryAttributes({ address: 0, size: PAGE, attributes: 1 }),
    ),
    refused('flags', 'EINVAL', ({ vm }) => vm.setMemoryAttributes({ address: 0, size: PAGE, attributes: 8, flags: 1 })),
  ],
  createGuestMemfd: [
    ...args('args', ({ vm }, value) => vm.createGuestMemfd(value)),
    ...u64('size', ({ vm }, value) => vm.createGuestMemfd({ size: value })),
    ...u64('flags', ({ vm }, value) => vm.createGuestMemfd({ size: PAGE, flags: value })).filter(
      ([what]) => what !== 'flags null',
    ),
    ['fd 1.5', ({ vm }) => vm.createGuestMemfd({ size: PAGE, fd: 1.5 }), /^fd is 1.5: it must be an integer/],
    ['fd x', ({ vm }) => vm.createGuestMemfd({ size: PAGE, fd: 'x' as never }), /^fd is x: it must be a number/],
    [
      'an open fd',
      ({ vm, file }) => vm.createGuestMemfd({ size: PAGE, fd: file.fd }),
      /that descriptor is open already/,
    ],
    refused('empty', 'EINVAL', ({ vm }) => vm.createGuestMemfd({ size: 0 })),
    refused('negative as an off_t', 'EINVAL', ({ vm }) => vm.createGuestMemfd({ size: 2n ** 63n })),
    refused('unaligned', 'EINVAL', ({ vm }) => vm.createGuestMemfd({ size: 5000 })),
  ],
  enableCap: [
    ...args('args', ({ vm }, value) => vm.enableCap(value)),
    ...number('cap', 0, 2 ** 32 - 1, ({ vm }, value) => vm.enableCap({ cap: value })),
    ...u64('args[0]', ({ vm }, value) => vm.enableCap({ cap: 168, args: [value] })).filter(
      ([what]) => what !== 'args[0] null',
    ),
    refused('unknown', 'EINVAL', ({ vm }) => vm.enableCap({ cap: 1 })),
    refused('flags', 'EINVAL', ({ vm }) => vm.enableCap({ cap: 168, flags: 1, args: [1] })),
    refused('an argument it lacks', 'EINVAL', ({ vm }) => vm.enableCap({ cap: 168, args: [8] })),
  ],
  getDirtyLog: [
    ...args('args', ({ vm }, value) => vm.getDirtyLog(value)),
    ...number('slot', 0, 2 ** 32 - 1, ({ vm }, value) => vm.getDirtyLog({ slot: value })),
    refused('not logged', 'ENOENT', ({ vm }) => vm.getDirtyLog({ slot: 1 })),
    refused('unknown slot', 'ENOENT', ({ vm }) => vm.getDirtyLog({ slot: 9 })),
    refused('id too large', 'EINVAL', ({ vm }) => vm.getDirtyLog({ slot: 0xffff })),
  ],
  clearDirtyLog: [
    ...args('args', ({ vm }, value) => vm.clearDirtyLog(value)),
    ...number('slot', 0, 2 ** 32 - 1, ({ vm }, value) =>
      vm.clearDirtyLog({ slot: value, firstPage: 0, numPages: 64, bitmap: 1n }),
    ),
    ...u64('firstPage', ({ vm }, value) => vm.clearDirtyLog({ slot: 0, firstPage: value, numPages: 64, bitmap: 1n })),
    ...number('numPages', 0, 2 ** 32 - 1, ({ vm }, value) =>
      vm.clearDirtyLog({ slot: 0, firstPage: 0, numPages: value, bitmap: 1n }),
    ),
    ...[undefined, 5, 'x', [1]].map(
      (bitmap): Bad => [
        `bitmap ${String(bitmap)}`,
        ({ vm }) => vm.clearDirtyLog({ slot: 0, firstPage: 0, numPages: 64, bitmap: bitmap as never }),
        /^bitmap must be a Uint8Array or a bigint/,
      ],
    ),
    ...[-1n, TOO_LARGE].map(
      (bitmap): Bad => [
        `bitmap ${bitmap}n`,
        ({ vm }) => vm.clearDirtyLog({ slot: 0, firstPage: 0, numPages: 64, bitmap }),
        /^bitmap is .*: it must be within 0 and 2\^64 - 1/,
      ],
    ),
    [
      'bitmap too short',
      ({ vm }) => vm.clearDirtyLog({ slot: 0, firstPage: 0, numPages: 65, bitmap: new Uint8Array(8) }),
      /^bitmap has 8 bytes: 65 pages need 9/,
    ],
    refused('unaligned', 'EINVAL', ({ vm }) => vm.clearDirtyLog({ slot: 0, firstPage: 5, numPages: 64, bitmap: 1n })),
    refused('beyond the slot', 'EINVAL', ({ vm }) =>
      vm.clearDirtyLog({ slot: 0, firstPage: 448, numPages: 128, bitmap: 1n }),
    ),
    refused('not logged', 'ENOENT', ({ vm }) => vm.clearDirtyLog({ slot: 1, firstPage: 0, numPages: 64, bitmap: 1n })),
  ],
  writeParameter: [
    ['name 7', ({ vm }) => vm.writeParameter(7 as never, true), /^name is 7: it must be one of nx_huge_pages/],
    ['name tdp', ({ vm }) => vm.writeParameter('tdp' as never, true), /^name is "tdp": it must be one of/],
    ['value 1', ({ vm }) => vm.writeParameter('nx_huge_pages', 1 as never), /^value is 1: it must be a boolean/],
  ],
  recoverNxHugePages: number('limit', 0, 2 ** 32 - 1, ({ vm }, value) => vm.recoverNxHugePages(value)),
  unmapGfnRange: rangeRows('unmapGfnRange'),
  ageGfn: rangeRows('ageGfn'),
  unmapGfnRanges: rangesRows('unmapGfnRanges'),
  ageGfnRanges: rangesRows('ageGfnRanges'),
  testAgeGfn: rangeRows('testAgeGfn'),
  setSpteGfn: [
    ...rangeRows('setSpteGfn'),
    refused('two gfns', 'EINVAL', ({ vm }) => vm.setSpteGfn({ ...inRange, arg: { pte: { writable: true } } })),
  ],
  zapGfnRange: [
    ...number('startGfn', 0, GFN_LIMIT - 1, ({ vm }, value) => vm.zapGfnRange(value, 20)),
    ...number('endGfn', 0, GFN_LIMIT, ({ vm }, value) => vm.zapGfnRange(0, value)),
    refused('empty', 'EINVAL', ({ vm }) => vm.zapGfnRange(10, 10)),
    refused('reversed', 'EINVAL', ({ vm }) => vm.zapGfnRange(10, 9)),
  ],
  yieldAt: number('gfn', 0, GFN_LIMIT - 1, ({ vm }, value) => vm.yieldAt(value)),
  walk: [
    ...u64('gpa', ({ vm }, value) => vm.walk(value)),
    ...[null, 7].map((value): Bad => [`options ${value}`, ({ vm }) => vm.walk(0, value as never), /^options is /]),
    ['root x', ({ vm }) => vm.walk(0, { root: 'x' as never }), /^root is "x": it must be one of direct, mirror/],
    ...number('asId', 0, 1, ({ vm }, value) => vm.walk(0, { asId: value })).filter(([what]) => what !== 'asId null'),
  ],
  leafs: [null, 7].map((value): Bad => [`options ${value}`, ({ vm }) => vm.leafs(value as never), /^options is /]),
  spte: [
    ...number('gfn', 0, GFN_LIMIT - 1, ({ vm }, value) => vm.spte(value)),
    ...number('asId', 0, 1, ({ vm }, value) => vm.spte(1, 'direct', value)).filter(
      ([what]) => what !== 'asId undefined',
    ),
    ['root x', ({ vm }) => vm.spte(1, 'x' as never), /^root is "x": it must be one of direct, mirror/],
  ],
  sptes: [
    ['gfns [1]', ({ vm }) => vm.sptes([1] as never), /^gfns must be a Float64Array/],
    ['a gfn of -1', ({ vm }) => vm.sptes(Float64Array.of(0, -1)), /^gfns\[1\] is -1: /],
    ['root x', ({ vm }) => vm.sptes(Float64Array.of(1), 'x' as never), /^root is "x": it must be one of/],
  ],
  stat: [['name x', ({ vm }) => vm.stat('x' as never), /^name is "x": there is no such counter/]],
  readTrace: [['read 7', ({ vm }) => vm.readTrace(7 as never), /^read is 7: it must be a function/]],
  rmp: [...u64('gpa', ({ vm }, value) => vm.rmp(value)), refused('no SNP guest', 'EINVAL', ({ vm }) => vm.rmp(0))],
  retry: number('seq', 0, Number.MAX_SAFE_INTEGER, ({ vm }, value) => vm.retry(value)),
  retryGfn: [
    ...number('seq', 0, Number.MAX_SAFE_INTEGER, ({ vm }, value) => vm.retryGfn(value, 1)),
    ...number('gfn', 0, Number.MAX_SAFE_INTEGER, ({ vm }, value) => vm.retryGfn(1, value)),
  ],
  retryGfnUnsafe: [
    ...number('seq', 0, Number.MAX_SAFE_INTEGER, ({ vm }, value) => vm.retryGfnUnsafe(value, 1)),
    ...number('gfn', 0, Number.MAX_SAFE_INTEGER, ({ vm }, value) => vm.retryGfnUnsafe(1, value)),
  ],
  isMixed: [
    ...number('slot', 0, 2 ** 32 - 1, ({ vm }, value) => vm.isMixed(value, 2, 0)),
    ...number('level', 2, 3, ({ vm }, value) => vm.isMixed(0, value, 0)),
    ...number('gfn', 0, Number.MAX_SAFE_INTEGER, ({ vm }, value) => vm.isMixed(0, 2, value)),
    ['slot of no address space', ({ vm }) => vm.isMixed(0x20000, 2, 0), /^slot is 131072: there is no such slot/],
  ],
  attributesOf: number('gfn', 0, Number.MAX_SAFE_INTEGER, ({ vm }, value) => vm.attributesOf(value)),
  steps: [
    ...args('options', steps),
    ...[0, 0.5, -1, Number.NaN, '9', null]
      .map((budget): Bad => [`budget ${budget}`, (targets) => steps(targets, { budget } as never), /^budget is /])
      .filter(([what]) => what !== 'budget null'),
    ['stopAt x', (targets) => steps(targets, { stopAt: ['x'] } as never), /^stopAt is "x": it must be one of/],
    ['call 7', (targets) => steps(targets, {} as never, 7 as never), /^call is 7: it must be a function/],
  ],
  finishPaused: [refused('nothing paused', 'EINVAL', ({ vm }) => vm.finishPaused())],
  restore: [undefined, null, 'x', [1], new ArrayBuffer(8)].map(
    (value): Bad => [
      `snapshot ${String(value)}`,
      ({ vm }) => vm.restore(value as never),
      /^snapshot must be a Uint8Array/,
    ],
  ),
};

const accessRows = (call: (vcpu: Vcpu, change: object) => unknown): Bad[] => [
  ...u64('gpa', ({ vcpu }, value) => call(vcpu, { gpa: value })),
  ['gpa 2^52', ({ vcpu }) => call(vcpu, { gpa: 2 ** 52 }), /^gpa is 0x10000000000000: it must be below 2\^52/],
  ['kind x', ({ vcpu }) => call(vcpu, { kind: 'x' }), /^kind is "x": it must be one of read, write, exec/],
  ['kind undefined', ({ vcpu }) => call(vcpu, { kind: undefined }), /^kind is undefined: it must be one of/],
  ['private 1', ({ vcpu }) => call(vcpu, { private: 1 }), /^private is 1: it must be a boolean/],
];
const vcpuRows: Record<string, Bad[]> = {
  constructor: [],
  run: [],
  enterSmm: [refused('a VM with one address space', 'EINVAL', ({ vcpu }) => vcpu.enterSmm())],
  leaveSmm: [],
  setInGuest: [['inGuest 1', ({ vcpu }) => vcpu.setInGuest(1 as never), /^inGuest is 1: it must be a boolean/]],
  preFaultMemory: [
    ...args('args', ({ vcpu }, value) => vcpu.preFaultMemory(value)),
    ...u64('gpa', ({ vcpu }, value) => vcpu.preFaultMemory({ gpa: value, size: PAGE })),
    ...u64('size', ({ vcpu }, value) => vcpu.preFaultMemory({ gpa: 0, size: value })),
    refused('unaligned', 'EINVAL', ({ vcpu }) => vcpu.preFaultMemory({ gpa: 1, size: PAGE })),
    refused('empty', 'EINVAL', ({ vcpu }) => vcpu.preFaultMemory({ gpa: 0, size: 0 })),
    refused('flags', 'EINVAL', ({ vcpu }) => vcpu.preFaultMemory({ gpa: 0, size: PAGE, flags: 1 })),
    refused('wrapping', 'EINVAL', ({ vcpu }) => vcpu.preFaultMemory({ gpa: TOO_LARGE - 4096n, size: 2 * PAGE })),
  ],
  access: [
    ...args('args', ({ vcpu }, value) => vcpu.access(value)),
    ...accessRows((vcpu, change) => vcpu.access({ gpa: 0, kind: 'read', ...change })),
    ...number('count', 0, 2 ** 40, ({ vcpu }, value) => vcpu.access({ gpa: 0, kind: 'read', count: value })),
    ...u64('stride', ({ vcpu }, value) => vcpu.access({ gpa: 0, kind: 'read', stride: value })),
    ['stride 5', ({ vcpu }) => vcpu.access({ gpa: 0, kind: 'read', stride: 5 }), /^stride is 5: .*multiple of 4096/],
    ...u64('size', ({ vcpu }, value) => vcpu.access({ gpa: 0, kind: 'read', size: value })),
  ],
  beginFault: [
    ...args('args', ({ vcpu }, value) => vcpu.beginFault(value)),
    ...accessRows((vcpu, change) => vcpu.beginFault({ gpa: 0, kind: 'read', ...change })),
  ],
  finishFault: [
    ...number('id', 0, 2 ** 31 - 1, ({ vcpu }, value) => vcpu.finishFault(value)),
    refused('unknown fault', 'EINVAL', ({ vcpu }) => vcpu.finishFault(5)),
    refused('fault beyond the table', 'EINVAL', ({ vcpu }) => vcpu.finishFault(99_999)),
  ],
  pageStateChange: [
    ...args('change', ({ vcpu }, value) => vcpu.pageStateChange(value)),
    ...u64('gpa', ({ vcpu }, value) => vcpu.pageStateChange({ protocol: 'msr', gpa: value, operation: 'shared' })),
    ...u64('entries[0].gpa', ({ vcpu }, value) =>
      vcpu.pageStateChange({ protocol: 'ghcb', entries: [{ gpa: value, operation: 'shared' }] }),
    ),
    ...number('curEntry', 0, 65_535, ({ vcpu }, value) =>
      vcpu.pageStateChange({ protocol: 'ghcb', entries: [{ gpa: 0, operation: 'shared' }], curEntry: value }),
    ),
    ...number('endEntry', 0, 65_535, ({ vcpu }, value) =>
      vcpu.pageStateChange({ protocol: 'ghcb', entries: [{ gpa: 0, operation: 'shared' }], endEntry: value }),
    ),
    refused('no SNP guest', 'EINVAL', ({ vcpu }) =>
      vcpu.pageStateChange({ protocol: 'msr', gpa: 0, operation: 'shared' }),
    ),
  ],
  completePageStateChange: [
    ...number('ret', -(2 ** 31), 2 ** 32 - 1, ({ vcpu }, value) => vcpu.completePageStateChange(value)),
    refused('nothing waits', 'EINVAL', ({ vcpu }) => vcpu.completePageStateChange()),
  ],
  rmpFault: [
    ...args('args', ({ vcpu }, value) => vcpu.rmpFault(value)),
    ...u64('gpa', ({ vcpu }, value) => vcpu.rmpFault({ gpa: value })),
    refused('no SNP guest', 'EINVAL', ({ vcpu }) => vcpu.rmpFault({ gpa: 0 })),
  ],
  pvalidate: [
    ...args('args', ({ vcpu }, value) => vcpu.pvalidate(value)),
    ...u64('gpa', ({ vcpu }, value) => vcpu.pvalidate({ gpa: value, size: PAGE })),
    ...u64('size', ({ vcpu }, value) => vcpu.pvalidate({ gpa: 0, size: value })),
    [
      'validate 1',
      ({ vcpu }) => vcpu.pvalidate({ gpa: 0, size: PAGE, validate: 1 as never }),
      /^validate is 1: it must be a boolean/,
    ],
    refused('no SNP guest', 'EINVAL', ({ vcpu }) => vcpu.pvalidate({ gpa: 0, size: PAGE })),
  ],
  dropFault: [
    ...number('id', 0, 2 ** 31 - 1, ({ vcpu }, value) => vcpu.dropFault(value)),
    refused('unknown fault', 'EINVAL', ({ vcpu }) => vcpu.dropFault(5)),
  ],
  accept: [
    ...args('args', ({ vcpu }, value) => vcpu.accept(value)),
    ...u64('gpa', ({ vcpu }, value) => vcpu.accept({ gpa: value, size: PAGE })),
    ...u64('size', ({ vcpu }, value) => vcpu.accept({ gpa: 0, size: value })),
    refused('unaligned', 'EINVAL', ({ vcpu }) => vcpu.accept({ gpa: 1, size: PAGE })),
    ...number('level', 1, 2, ({ vcpu }, value) => vcpu.accept({ gpa: 0, size: PAGE, level: value })).filter(
      ([what]) => what !== 'level null',
    ),
    refused('a VM that is no TD', 'EINVAL', ({ vcpu }) => vcpu.accept({ gpa: 0, size: PAGE })),
  ],
  beginAccept: [
    ...args('args', ({ vcpu }, value) => vcpu.beginAccept(value)),
    ...u64('gpa', ({ vcpu }, value) => vcpu.beginAccept({ gpa: value })),
    ...number('level', 1, 2, ({ vcpu }, value) => vcpu.beginAccept({ gpa: 0, level: value })).filter(
      ([what]) => what !== 'level null',
    ),
    refused('a VM that is no TD', 'EINVAL', ({ vcpu }) => vcpu.beginAccept({ gpa: 0 })),
  ],
  finishAccept: [refused('a VM that is no TD', 'EINVAL', ({ vcpu }) => vcpu.finishAccept())],
  beginEnter: [refused('a VM that is no TD', 'EINVAL', ({ vcpu }) => vcpu.beginEnter())],
  finishEnter: [refused('a VM that is no TD', 'EINVAL', ({ vcpu }) => vcpu.finishEnter())],
  mapGpa: [
    ...args('args', ({ vcpu }, value) => vcpu.mapGpa(value)),
    ...u64('gpa', ({ vcpu }, value) => vcpu.mapGpa({ gpa: value, size: PAGE })),
    ...u64('size', ({ vcpu }, value) => vcpu.mapGpa({ gpa: 0, size: value })),
    ...[0, 0.5, -1, 'x'].map(
      (value): Bad => [
        `interruptAfter ${value}`,
        ({ vcpu }) => vcpu.mapGpa({ gpa: 0, size: PAGE, interruptAfter: value as never }),
        /^interruptAfter is /,
      ],
    ),
    [
      'complete 7',
      ({ vcpu }) => vcpu.mapGpa({ gpa: 0, size: PAGE, complete: 7 as never }),
      /^complete must be a function/,
    ],
    refused('a VM that is no TD', 'EINVAL', ({ vcpu }) => vcpu.mapGpa({ gpa: 0, size: PAGE })),
  ],
  initMemRegion: [
    ...args('args', ({ vcpu }, value) => vcpu.initMemRegion(value)),
    ...u64('gpa', ({ vcpu }, value) => vcpu.initMemRegion({ gpa: value, pages: 1 })),
    ...u64('pages', ({ vcpu }, value) => vcpu.initMemRegion({ gpa: 0, pages: value })),
    ...u64('source', ({ vcpu }, value) => vcpu.initMemRegion({ gpa: 0, pages: 1, source: value })).filter(
      ([what]) => what !== 'source null',
    ),
    [
      'measure 1',
      ({ vcpu }) => vcpu.initMemRegion({ gpa: 0, pages: 1, measure: 1 as never }),
      /^measure is 1: it must be a boolean/,
    ],
    ...number('signalAfter', 0, Number.MAX_SAFE_INTEGER, ({ vcpu }, value) =>
      vcpu.initMemRegion({ gpa: 0, pages: 1, signalAfter: value }),
    ),
    refused('a VM that is no TD', 'EINVAL', ({ vcpu }) => vcpu.initMemRegion({ gpa: 0, pages: 1 })),
  ],
};

const hostMethodRows: Record<string, Bad[]> = {
  constructor: [],
  mmap: [
    ...hvaRows(
      ({ host }, change) => host.mmap({ kind: 'anon4k', ...hostRange, ...change }),
      ({ host }, value) => host.mmap(value),
    ),
    ['kind x', ({ host }) => host.mmap({ kind: 'x' as never, ...hostRange }), /^kind is "x": it must be one of anon4k/],
    ...number('prot', 0, 7, ({ host }, value) => host.mmap({ kind: 'thp', ...hostRange, prot: value })).filter(
      ([what]) => what !== 'prot null',
    ),
    refused('unaligned', 'EINVAL', ({ host }) => host.mmap({ kind: 'thp', hva: 5, length: PAGE })),
    refused('unaligned for its kind', 'EINVAL', ({ host }) =>
      host.mmap({ kind: 'hugetlb1g', hva: PAGE, length: PAGE }),
    ),
    refused('empty', 'EINVAL', ({ host }) => host.mmap({ kind: 'thp', hva: SLOT_HVA, length: 0 })),
    refused('beyond user addresses', 'ENOMEM', ({ host }) => host.mmap({ kind: 'thp', hva: 2n ** 60n, length: PAGE })),
  ],
  munmap: [...hostRows('munmap'), unalignedHost('munmap')],
  mprotect: [
    ...hvaRows(
      ({ host }, change) => host.mprotect({ ...hostRange, prot: 1, ...change }),
      ({ host }, value) => host.mprotect(value),
    ),
    ...number('prot', 0, 7, ({ host }, value) => host.mprotect({ ...hostRange, prot: value })),
    refused('a hole', 'ENOMEM', ({ host }) => host.mprotect({ hva: PAGE, length: PAGE, prot: 1 })),
  ],
  madvise: [
    ...hvaRows(
      ({ host }, change) => host.madvise({ ...hostRange, advice: 'DONTNEED', ...change }),
      ({ host }, value) => host.madvise(value),
    ),
    [
      'advice x',
      ({ host }) => host.madvise({ ...hostRange, advice: 'x' as never }),
      /^advice is "x": it must be one of/,
    ],
    [
      'succeeds 1',
      ({ host }) => host.madvise({ ...hostRange, advice: 'COLLAPSE', succeeds: 1 as never }),
      /^succeeds is 1/,
    ],
    refused('a hole', 'ENOMEM', ({ host }) => host.madvise({ hva: PAGE, length: PAGE, advice: 'DONTNEED' })),
    refused('not for its kind', 'EINVAL', ({ host }) => host.madvise({ ...hostRange, advice: 'REMOVE' })),
  ],
  mremap: [
    ...args('args', ({ host }, value) => host.mremap(value)),
    ...(['old', 'length', 'new'] as const).flatMap((name) =>
      u64(name, ({ host }, value) => host.mremap({ old: SLOT_HVA, length: PAGE, new: PAGE, [name]: value })),
    ),
    refused('overlapping', 'EINVAL', ({ host }) =>
      host.mremap({ old: SLOT_HVA, length: 2 * PAGE, new: SLOT_HVA + PAGE }),
    ),
    refused('nothing there', 'EFAULT', ({ host }) => host.mremap({ old: PAGE, length: PAGE, new: 16 * PAGE })),
  ],
  access: [
    ...hvaRows(
      ({ host }, change) => host.access({ ...hostRange, write: true, ...change }),
      ({ host }, value) => host.access(value),
    ),
    ['write 1', ({ host }) => host.access({ ...hostRange, write: 1 as never }), /^write is 1: it must be a boolean/],
    ...number('step', 1, 2 ** 48, ({ host }, value) => host.access({ ...hostRange, write: true, step: value })).filter(
      ([what]) => what !== 'step null',
    ),
    refused('nothing there', 'EFAULT', ({ host }) => host.access({ hva: PAGE, length: 1, write: true })),
  ],
  migrate: [...hostRows('migrate'), unalignedHost('migrate')],
  khugepaged: hostRows('khugepaged'),
  ksm: [...hostRows('ksm'), unalignedHost('ksm')],
  failHugePage: [...hostRows('failHugePage'), unalignedHost('failHugePage')],
  changePte: [
    ...args('args', ({ host }, value) => host.changePte(value)),
    ...u64('hva', ({ host }, value) => host.changePte({ hva: value, writable: true })),
    [
      'writable 1',
      ({ host }) => host.changePte({ hva: SLOT_HVA, writable: 1 as never }),
      /^writable is 1: .* a boolean/,
    ],
    refused('nothing there', 'EFAULT', ({ host }) => host.changePte({ hva: PAGE, writable: true })),
  ],
  pageIdleSet: [
    ...args('args', ({ host }, value) => host.pageIdleSet(value)),
    ...u64('hva', ({ host }, value) => host.pageIdleSet({ hva: value, pages: 1 })),
    ...number('pages', 0, 2 ** 31 - 1, ({ host }, value) => host.pageIdleSet({ hva: SLOT_HVA, pages: value })),
  ],
  clearRefs: [
    ...number('kind', 1, 5, ({ host }, value) => host.clearRefs(value)),
    refused('a kind that is left out', 'EINVAL', ({ host }) => host.clearRefs(2)),
  ],
  invalidateRangeStart: [
    ...hostRows('invalidateRangeStart'),
    [
      'blockable 1',
      ({ host }) => host.invalidateRangeStart({ ...hostRange, blockable: 1 as never }),
      /^blockable is 1: it must be a boolean/,
    ],
  ],
  invalidateRangeEnd: [
    ...hostRows('invalidateRangeEnd'),
    refused('without its start', 'EINVAL', ({ host }) => host.invalidateRangeEnd(hostRange)),
  ],
  age: [
    ...hostRows('age'),
    ['flush 1', ({ host }) => host.age({ ...hostRange, flush: 1 as never }), /^flush is 1: it must be a boolean/],
  ],
  testAge: [
    ...args('args', ({ host }, value) => host.testAge(value)),
    ...u64('hva', ({ host }, value) => host.testAge({ hva: value })),
  ],
};

const fileRows: Record<string, Bad[]> = {
  constructor: [],
  close: [],
  fallocate: [
    ...args('args', ({ file }, value) => file.fallocate(value)),
    ...number('mode', 0, 2 ** 32 - 1, ({ file }, value) => file.fallocate({ mode: value, offset: 0, length: PAGE })),
    ...u64('offset', ({ file }, value) => file.fallocate({ mode: 1, offset: value, length: PAGE })),
    ...u64('length', ({ file }, value) => file.fallocate({ mode: 1, offset: 0, length: value })),
    refused('another mode', 'EOPNOTSUPP', ({ file }) => file.fallocate({ mode: 0, offset: 0, length: PAGE })),
  ],
  punchHole: [
    ...u64('offset', ({ file }, value) => file.punchHole(value, PAGE)),
    ...u64('length', ({ file }, value) => file.punchHole(0, value)),
    refused('unaligned', 'EINVAL', ({ file }) => file.punchHole(1, PAGE)),
    refused('empty', 'EINVAL', ({ file }) => file.punchHole(0, 0)),
    refused('beyond the largest file', 'EFBIG', ({ file }) => file.punchHole(2n ** 63n - 4096n, 2 * PAGE)),
  ],
  allocate: [
    ...u64('offset', ({ file }, value) => file.allocate(value, PAGE)),
    ...u64('length', ({ file }, value) => file.allocate(0, value)),
    refused('beyond the file', 'EINVAL', ({ file }) => file.allocate(255 * PAGE, 2 * PAGE)),
  ],
  memoryError: [
    ...number('pageIndex', 0, GFN_LIMIT, ({ file }, value) => file.memoryError(value)),
    refused('beyond the file', 'EINVAL', ({ file }) => file.memoryError(256)),
  ],
  setMemoryAttributes: [
    ...args('args', ({ file }, value) => file.setMemoryAttributes(value)),
    ...u64('offset', ({ file }, value) => file.setMemoryAttributes({ offset: value, size: PAGE, attributes: 8 })),
    ...u64('size', ({ file }, value) => file.setMemoryAttributes({ offset: 0, size: value, attributes: 8 })),
    ...u64('attributes', ({ file }, value) => file.setMemoryAttributes({ offset: 0, size: PAGE, attributes: value })),
    refused('another form', 'ENOTTY', ({ file }) => file.setMemoryAttributes({ offset: 0, size: PAGE, attributes: 8 })),
  ],
  hostAccess: [
    ...args('args', ({ file }, value) => file.hostAccess(value)),
    ...u64('offset', ({ file }, value) => file.hostAccess({ offset: value, length: PAGE })),
    ...u64('length', ({ file }, value) => file.hostAccess({ offset: 0, length: value })),
    refused('another form', 'ENODEV', ({ file }) => file.hostAccess({ offset: 0, length: PAGE })),
  ],
  elevateRefcount: [
    ...number('pageIndex', 0, GFN_LIMIT - 1, ({ file }, value) => file.elevateRefcount(value)),
    refused('beyond the file', 'EINVAL', ({ file }) => file.elevateRefcount(256)),
    refused('not allocated', 'ENOENT', ({ file }) => file.elevateRefcount(200)),
  ],
  dropRefcount: [
    ...number('pageIndex', 0, GFN_LIMIT - 1, ({ file }, value) => file.dropRefcount(value)),
    refused('beyond the file', 'EINVAL', ({ file }) => file.dropRefcount(256)),
  ],
  rmp: [
    ...number('pageIndex', 0, GFN_LIMIT - 1, ({ file }, value) => file.rmp(value)),
    refused('no SNP guest', 'EINVAL', ({ file }) => file.rmp(0)),
  ],
};

const BLOCK = 'TDH.MEM.RANGE.BLOCK';
/** `vm.tdx`, of a TD that runs already. */
const moduleRows: Record<string, Bad[]> = {
  constructor: [],
  epoch: [],
  state: [],
  leafs: [],
  statuses: [],
  terminate: [],
  entry: [
    ...u64('gpa', ({ vm }, value) => vm.tdx.entry(value)),
    ['gpa 2^52', ({ vm }) => vm.tdx.entry(2 ** 52), /^gpa is 0x10000000000000: it must be below 2\^52/],
    ['gpa 1', ({ vm }) => vm.tdx.entry(1), /^gpa is 0x1: it must be a multiple of 4096/],
    ...number('level', 1, 5, ({ vm }, value) => vm.tdx.entry(0, value)),
  ],
  seamcall: [
    ...['TDH.MEM.PAGE.FLY', 7, null].map(
      (leaf): Bad => [`leaf ${leaf}`, ({ vm }) => vm.tdx.seamcall(leaf as never), /^leaf is /],
    ),
    ['leaf TDH.VP.ENTER', ({ vm }) => vm.tdx.seamcall('TDH.VP.ENTER' as never), /^leaf is "TDH.VP.ENTER": .*one of/],
    ...[null, 7].map((value): Bad => [`args ${value}`, ({ vm }) => vm.tdx.seamcall(BLOCK, value as never), /^args is/]),
    ...u64('gpa', ({ vm }, value) => vm.tdx.seamcall(BLOCK, { gpa: value })).filter(([what]) => what !== 'gpa null'),
    ['gpa 5', ({ vm }) => vm.tdx.seamcall(BLOCK, { gpa: 5 }), /^gpa is 0x5: it must be a multiple of 4096/],
    ...number('level', 1, 5, ({ vm }, value) => vm.tdx.seamcall(BLOCK, { level: value })).filter(
      ([what]) => what !== 'level null',
    ),
  ],
  injectStatus: [
    ...args('args', ({ vm }, value) => vm.tdx.injectStatus(value)),
    ['leaf x', ({ vm }) => vm.tdx.injectStatus({ leaf: 'x' as never, status: 'TDX_OPERAND_BUSY' }), /^leaf is "x"/],
    ['status x', ({ vm }) => vm.tdx.injectStatus({ leaf: BLOCK, status: 'x' as never }), /^status is "x"/],
    [
      'an exit that a SEAMCALL has not',
      ({ vm }) => vm.tdx.injectStatus({ leaf: BLOCK, status: 'EPT_VIOLATION' }),
      /^status is "EPT_VIOLATION": only TDG.MEM.PAGE.ACCEPT ends so, not TDH.MEM.RANGE.BLOCK/,
    ],
    ...(['skip', 'times'] as const).flatMap((name) =>
      number(name, 0, 2 ** 32 - 1, ({ vm }, value) =>
        vm.tdx.injectStatus({ leaf: BLOCK, status: 'TDX_OPERAND_BUSY', [name]: value }),
      ).filter(([what]) => what !== `${name} null`),
    ),
  ],
  finalize: [refused('a TD that is finalized', 'EINVAL', ({ vm }) => vm.tdx.finalize())],
};

const classes = [
  ['Vm', Vm, vmRows, 'sw-protected'],
  ['Vcpu', Vcpu, vcpuRows, 'sw-protected'],
  ['HostMemory', HostMemory, hostMethodRows, 'sw-protected'],
  ['GuestMemfd', GuestMemfd, fileRows, 'sw-protected'],
  ['TdxModule', TdxModule, moduleRows, 'tdx'],
] as const;

test.each<[string, (targets: Targets) => unknown]>([
  ['epoch', ({ vm }) => vm.tdx.epoch],
  ['state', ({ vm }) => vm.tdx.state],
  ['leafs', ({ vm }) => vm.tdx.leafs()],
  ['statuses', ({ vm }) => vm.tdx.statuses()],
  ['entry', ({ vm }) => vm.tdx.entry(0)],
  ['seamcall', ({ vm }) => vm.tdx.seamcall(BLOCK)],
  ['injectStatus', ({ vm }) => vm.tdx.injectStatus({ leaf: BLOCK, status: 'TDX_OPERAND_BUSY' })],
  ['finalize', ({ vm }) => vm.tdx.finalize()],
  ['terminate', ({ vm }) => vm.tdx.terminate()],
])('vm.tdx.%s refuses a VM that is no TD with EINVAL', (_, call) => {
  const targets = makeTargets();
  const before = targets.vm.snapshot();
  expect(() => call(targets)).toThrow(expect.objectContaining({ code: 'EINVAL' }));
  expect(isSame(targets.vm, before)).toBe(true);
});

test.each<[string, (targets: Targets) => unknown]>([
  ['accept of a shared address', ({ vcpu }) => vcpu.accept({ gpa: 2 ** 47, size: PAGE })],
  ['beginAccept of half a page', ({ vcpu }) => vcpu.beginAccept({ gpa: 2048 })],
  ['beginAccept of half a 2M page', ({ vcpu }) => vcpu.beginAccept({ gpa: PAGE, level: 2 })],
  ['beginAccept of a shared address', ({ vcpu }) => vcpu.beginAccept({ gpa: 2 ** 47 })],
  ['finishAccept of none', ({ vcpu }) => vcpu.finishAccept()],
  ['finishEnter of none', ({ vcpu }) => vcpu.finishEnter()],
  ['initMemRegion of a TD that runs', ({ vcpu }) => vcpu.initMemRegion({ gpa: 1024 * PAGE, pages: 1 })],
])('%s is refused with EINVAL on a TD, and changes nothing', (_, call) => {
  const targets = makeTargets('tdx');
  const before = targets.vm.snapshot();
  expect(() => call(targets)).toThrow(expect.objectContaining({ code: 'EINVAL' }));
  expect(isSame(targets.vm, before)).toBe(true);
});

describe.each(classes)('%s', (_, type, rows, vmType) => {
  test('every method has its row here', () => {
    expect(Object.keys(rows).sort()).toEqual(Object.getOwnPropertyNames(type.prototype).sort());
  });

  const targets = makeTargets(vmType);
  const before = targets.vm.snapshot();
  for (const [method, cases] of Object.entries(rows)) {
    if (cases.length === 0) continue;
    test.each(cases)(`${method} refuses %s`, (_, call, message) => {
      let thrown: unknown;
      try {
        call(targets);
      } catch (error) {
        thrown = error;
      }
      const changed = Buffer.compare(targets.vm.snapshot(), before) !== 0;
      if (changed) targets.vm.restore(before);
      expect(thrown).toBeInstanceOf(Error);
      expect((thrown as Error).message).toMatch(message);
      expect(['TypeError', 'RangeError', 'KvmError']).toContain((thrown as Error).name);
      if (thrown instanceof KvmError) {
        expect(thrown.code).toBe(/: (E[A-Z]+): /.exec(thrown.message)?.[1]);
        expect(thrown.message.startsWith(`${thrown.call}(`)).toBe(true);
      }
      expect(changed, 'the VM has changed').toBe(false);
    });
  }
});

describe('createVm() and createVmSync()', () => {
  const bad: [what: string, options: unknown, message: RegExp][] = [
    ['nothing', undefined, /^options is undefined: it must be an object/],
    ['null', null, /^options is null/],
    ['no memory', {}, /^memory is missing/],
    ...([[Number.NaN], [-4096], [0.5], ['4096'], [TOO_LARGE], [0], [5000], [2n ** 53n]] as const).map(
      ([memory]): [string, unknown, RegExp] => [`memory ${memory}`, { memory }, /^memory is .*: it must/],
    ),
    ...(
      [
        ['type', 'vmx', /^type is "vmx": it must be one of default, sw-protected, tdx, snp/],
        ['type', 7, /^type is 7/],
        ['kernel', 'linux-5.4', /^kernel is "linux-5.4"/],
        ['filterForm', 'all', /^filterForm is "all"/],
        ['vcpus', 0, /^vcpus is 0: it must be within 1 and 4096/],
        ['vcpus', 1.5, /^vcpus is 1.5: it must be an integer/],
        ['vcpus', 4097, /^vcpus is 4097/],
        ['vcpus', '1', /^vcpus is 1: it must be a number/],
        ['maxphyaddr', 35, /^maxphyaddr is 35: it must be within 36 and 52/],
        ['maxphyaddr', Number.NaN, /^maxphyaddr is NaN/],
        ['gpaw', 49, /^gpaw is 49: it must be 48 or 52/],
        ['td', 7, /^td is 7: it must be an object/],
        ['td', {}, /^td is given, and type is default: it must be tdx/],
        ['quirks', 7, /^quirks is 7: it must be an object/],
        ['quirks', { slotZapAll: 1 }, /^quirks.slotZapAll is 1: it must be a boolean/],
        ['nxHugePages', 1, /^nxHugePages is 1/],
        ['eagerPageSplit', 'no', /^eagerPageSplit is no/],
        ['mmioCaching', 0, /^mmioCaching is 0/],
        ['hugepageGuard', 0, /^hugepageGuard is 0/],
        ['septVeDisable', 0, /^septVeDisable is 0/],
        ['debug', 1, /^debug is 1/],
        ['traceRecords', -1, /^traceRecords is -1: it must be within 0 and 134217728/],
        ['traceRecords', 2 ** 27 + 1, /^traceRecords is 134217729/],
        ['traceRecords', 1n, /^traceRecords is 1: it must be a number/],
        ['wasm', 7, /wasm/],
        ['wasm', 'dist/eptsim.wasm', /wasm/],
        ['stepsWasm', 7, /wasm/i],
      ] as const
    ).map(([name, value, message]): [string, unknown, RegExp] => [
      `${name} ${typeof value === 'object' ? JSON.stringify(value) : String(value)}`,
      { memory: PAGE, [name]: value },
      message,
    ]),
  ];
  test.each([
    [{ vcpu: 2 }, /^options has no "vcpu": it must be one of type, kernel, .*, vcpus, .*, debug$/],
    [{ quirks: { slotZapall: true } }, /^quirks has no "slotZapall": it must be one of slotZapAll$/],
    [{ type: 'tdx', td: { hugepages: true } }, /^td has no "hugepages": it must be one of build, hugePages, zap/],
  ])('refuse a misspelt option: %j', (options, message) => {
    expect(() => createVmSync({ memory: PAGE, ...options } as CreateVmOptions)).toThrow(message);
    expect(() => createVmSync({ memory: PAGE, nothing: undefined } as CreateVmOptions)).not.toThrow();
  });
  test.each([
    ['build', 1, /^td.build is 1: it must be a boolean/],
    ['hugePages', 'yes', /^td.hugePages is yes: it must be a boolean/],
    ['zap', 'all', /^td.zap is "all": it must be one of whole-leaf, split-first, split-boundary/],
    ['track', 1, /^td.track is 1: it must be one of per-page, batched/],
    ['localRetry', 0, /^td.localRetry is 0: it must be a boolean/],
    ['packages', 0, /^td.packages is 0: it must be within 1 and 64/],
    ['packages', 65, /^td.packages is 65: it must be within 1 and 64/],
  ])('refuse td.%s %s', (name, value, message) => {
    expect(() => createVmSync({ type: 'tdx', memory: PAGE, td: { [name]: value } })).toThrow(message);
  });
  test.each(bad)('refuse %s', async (_, options, message) => {
    expect(() => createVmSync(options as CreateVmOptions)).toThrow(message);
    await expect(createVm(options as CreateVmOptions)).rejects.toThrow(message);
  });
});

describe('openFd() and closeFd()', () => {
  test.each([
    ['7', /^fd is 7: it must be a number/],
    [undefined, /^fd is undefined/],
    [Number.NaN, /^fd is NaN: it must be an integer/],
    [-1, /^fd is -1/],
    [1.5, /^fd is 1.5/],
    [2 ** 31, /^fd is 2147483648: it must be an integer within 0 and 2147483647/],
  ])('refuse %s', (fd, message) => {
    expect(() => openFd(fd as number, 'other')).toThrow(message);
    expect(() => closeFd(fd as number)).toThrow(message);
  });
  test('openFd() refuses an unknown kind', () => {
    expect(() => openFd(5000, 'socket' as never)).toThrow(/^kind is "socket": it must be 'guest_memfd' or 'other'/);
  });
});

describe('descriptors', () => {
  const bind = ({ vm }: Targets, fd: number) => vm.setUserMemoryRegion2({ ...slotArgs, flags: 4, guestMemfd: fd });

  test('the guest_memfd of another VM is refused with EINVAL', () => {
    const targets = makeTargets();
    const other = makeTargets();
    const before = targets.vm.snapshot();
    expect(() => bind(targets, other.file.fd)).toThrow(/: EINVAL: /);
    expect(isSame(targets.vm, before)).toBe(true);
  });

  test.each(['guest_memfd', 'other'] as const)(
    '%s opened elsewhere is refused with EINVAL, closed with EBADF',
    (kind) => {
      const targets = makeTargets();
      const before = targets.vm.snapshot();
      openFd(4321, kind);
      expect(() => bind(targets, 4321)).toThrow(/: EINVAL: /);
      closeFd(4321);
      expect(() => bind(targets, 4321)).toThrow(/: EBADF: /);
      expect(isSame(targets.vm, before)).toBe(true);
    },
  );

  test('a closed file refuses every call with EBADF', () => {
    const { vm, file } = makeTargets();
    file.close();
    const calls = [
      () => file.close(),
      () => file.punchHole(0, PAGE),
      () => file.allocate(0, PAGE),
      () => file.memoryError(0),
    ];
    for (const call of calls) expect(call).toThrow(/: EBADF: /);
    // A new file takes the number over; the old handle stays closed.
    const next = vm.createGuestMemfd({ size: PAGE });
    expect(next.fd).toBe(file.fd);
    for (const call of calls) expect(call).toThrow(/: EBADF: /);
    expect(next.size).toBe(BigInt(PAGE));
  });
});

/** One valid call of every method that changes state, or asks the kernel something. */
const valid: Record<string, (targets: Targets) => unknown> = {
  'Vm.setUserMemoryRegion': ({ vm }) => vm.setUserMemoryRegion(slotArgs),
  'Vm.setUserMemoryRegion2': ({ vm }) => vm.setUserMemoryRegion2(slotArgs),
  'Vm.setMemoryAttributes': ({ vm }) => vm.setMemoryAttributes({ address: 0, size: PAGE, attributes: 8 }),
  'Vm.createGuestMemfd': ({ vm }) => vm.createGuestMemfd({ size: PAGE }),
  'Vm.enableCap': ({ vm }) => vm.enableCap({ cap: 168, args: [1] }),
  'Vm.getDirtyLog': ({ vm }) => vm.getDirtyLog({ slot: 0 }),
  'Vm.clearDirtyLog': ({ vm }) => vm.clearDirtyLog({ slot: 0, firstPage: 0, numPages: 64, bitmap: 1n }),
  'Vm.unmapGfnRange': ({ vm }) => vm.unmapGfnRange(inRange),
  'Vm.ageGfn': ({ vm }) => vm.ageGfn(inRange),
  'Vm.unmapGfnRanges': ({ vm }) => vm.unmapGfnRanges({ slot: 0, starts: Float64Array.of(10), npages: 1 }),
  'Vm.ageGfnRanges': ({ vm }) => vm.ageGfnRanges({ slot: 0, starts: Float64Array.of(10), npages: 1 }),
  'Vm.testAgeGfn': ({ vm }) => vm.testAgeGfn(inRange),
  'Vm.setSpteGfn': ({ vm }) => vm.setSpteGfn({ ...inRange, end: 11 }),
  'Vm.zapGfnRange': ({ vm }) => vm.zapGfnRange(0, 9),
  'Vm.writeParameter': ({ vm }) => vm.writeParameter('nx_huge_pages', true),
  'Vm.recoverNxHugePages': ({ vm }) => vm.recoverNxHugePages(),
  'Vm.flushRemoteTlbs': ({ vm }) => vm.flushRemoteTlbs(),
  'Vcpu.run': ({ vcpu }) => vcpu.run(),
  'Vcpu.access': ({ vcpu }) => vcpu.access({ gpa: 0, kind: 'read' }),
  'Vcpu.preFaultMemory': ({ vcpu }) => vcpu.preFaultMemory({ gpa: 0, size: PAGE }),
  'Vcpu.accept': ({ vcpu }) => vcpu.accept({ gpa: 1024 * PAGE, size: PAGE }),
  'Vcpu.beginFault': ({ vcpu }) => vcpu.beginFault({ gpa: 0, kind: 'read' }),
  'Vcpu.finishFault': ({ vcpu }) => vcpu.finishFault(0),
  'Vcpu.dropFault': ({ vcpu }) => vcpu.dropFault(0),
  'Vcpu.setInGuest': ({ vcpu }) => vcpu.setInGuest(true),
  'Vcpu.enterSmm': ({ vcpu }) => vcpu.enterSmm(),
  'Vcpu.beginAccept': ({ vcpu }) => vcpu.beginAccept({ gpa: 1024 * PAGE }),
  'Vcpu.finishAccept': ({ vcpu }) => vcpu.finishAccept(),
  'Vcpu.beginEnter': ({ vcpu }) => vcpu.beginEnter(),
  'Vcpu.finishEnter': ({ vcpu }) => vcpu.finishEnter(),
  'Vcpu.mapGpa': ({ vcpu }) => vcpu.mapGpa({ gpa: 1024 * PAGE, size: PAGE }),
  'Vcpu.initMemRegion': ({ vcpu }) => vcpu.initMemRegion({ gpa: 1024 * PAGE, pages: 1 }),
  'TdxModule.seamcall': ({ vm }) => vm.tdx.seamcall(BLOCK),
  'TdxModule.injectStatus': ({ vm }) => vm.tdx.injectStatus({ leaf: BLOCK, status: 'TDX_OPERAND_BUSY' }),
  'TdxModule.finalize': ({ vm }) => vm.tdx.finalize(),
};

describe.each(Object.entries(valid))('%s', (_, call) => {
  test('refuses a destroyed VM', () => {
    const targets = makeTargets('tdx');
    targets.file.close();
    targets.vm.destroy();
    const before = targets.vm.snapshot();
    expect(() => call(targets)).toThrow(/: EBADF: the VM was destroyed/);
    expect(isSame(targets.vm, before)).toBe(true);
  });

  test('refuses a dead VM with EIO', () => {
    const targets = makeTargets('tdx');
    // The guest touches a page that it has not accepted.
    targets.vcpu.access({ gpa: 1024 * PAGE, kind: 'read' });
    expect(targets.vm.dead).toBe(true);
    const before = targets.vm.snapshot();
    expect(() => call(targets)).toThrow(/: EIO: the VM is dead/);
    expect(isSame(targets.vm, before)).toBe(true);
  });
});

test('a VM is destroyed once', () => {
  const { vm, file } = makeTargets();
  vm.destroy();
  expect(() => vm.destroy()).toThrow(/: EBADF: the VM was destroyed/);
  file.close();
  expect(() => vm.destroy()).toThrow(/: EBADF: the VM was destroyed/);
});
