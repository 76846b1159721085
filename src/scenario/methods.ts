// The steps a scenario can take: one row for each method of the API, with the fields it takes and how it is called.
//
// The table is the one place that knows both spellings: the scenario's (a mapping of fields) and the API's. The checker
// reads it to judge a file, the runner to call, docs/scenario-format.md is compared with it by a test.
// Left out: snapshot(), restore(), steps() and the inspecting methods; a program calls those itself.

import type { GuestMemfd } from '../guest-memfd.ts';
import { type Advice, HOST_KINDS, type HostMemory } from '../host-memory.ts';
import {
  type MapGpaRangeExit,
  PAGE_SIZES,
  type PageStateResponse,
  PSC_MAX_ENTRIES,
  PVALIDATE_REASONS,
  RMP_FAULT_OUTCOMES,
} from '../snp.ts';
import { CALLABLE_LEAFS, LEAF_NAMES, STATUS_NAMES } from '../tdx.ts';
import { MAP_GPA_RESULTS, type Vcpu } from '../vcpu.ts';
import type { Vm } from '../vm.ts';
import { type Field, flag, number, optional, u64, word } from './fields.ts';

export type Handle = 'vm' | 'vcpu' | 'host' | 'guestMemfd';

/** What a step acts on: the VM, and the handles the step named. */
export interface Handles {
  vm: Vm;
  vcpu: Vcpu;
  host: HostMemory;
  guestMemfd: GuestMemfd;
}

/** The evaluated fields of one step. */
export type Arguments = Record<string, unknown>;

export interface Method {
  handle: Handle;
  fields: Record<string, Field>;
  /** What `as` gives a name to. */
  names?: 'guestMemfd' | 'fault';
  /** What `returns` is compared with; a method without it returns nothing. */
  returns?: Field;
  /** What it must return where the step does not say. */
  endsWell?: string;
  call(handles: Handles, args: Arguments): unknown;
}

const ADVICES = [
  'DONTNEED',
  'FREE',
  'REMOVE',
  'MERGEABLE',
  'UNMERGEABLE',
  'HUGEPAGE',
  'NOHUGEPAGE',
  'COLD',
  'PAGEOUT',
  'POPULATE_READ',
  'POPULATE_WRITE',
  'COLLAPSE',
] as const satisfies readonly Advice[];

const RANGE: Record<string, Field> = {
  slot: number,
  asId: optional(number),
  start: number,
  end: number,
  attributes: optional(number),
  writable: optional(flag),
  mayBlock: optional(flag),
  onlyPrivate: optional(flag),
  onlyShared: optional(flag),
  attrFilter: optional(number),
};

const AREA: Record<string, Field> = { hva: u64, length: u64 };
const BYTES: Record<string, Field> = { offset: u64, length: u64 };

const ACCESS: Record<string, Field> = {
  gpa: u64,
  kind: word('read', 'write', 'exec'),
  private: optional(flag),
};

// biome-ignore lint/suspicious/noExplicitAny: the fields were checked against the row; the API checks the values.
type Checked = any;

/** How an access can end, and what becomes of a fault. */
const REASONS = word('done', 'mmio', 'memory_fault', 'error', 'retry', 've', 'vc');
const RESULTS = word('fixed', 'spurious', 'retry', 'emulate', 'memory_fault', 'error', 'frozen');

function gfnRange(args: Checked): Checked {
  const { attributes, writable, ...range } = args;
  const arg = { ...(attributes !== undefined && { attributes }), ...(writable !== undefined && { pte: { writable } }) };
  return Object.keys(arg).length > 0 ? { ...range, arg } : range;
}

const onVm = (fields: Record<string, Field>, call: (vm: Vm, args: Checked) => unknown, returns?: Field): Method => ({
  handle: 'vm',
  fields,
  ...(returns && { returns }),
  call: ({ vm }, args) => call(vm, args),
});

const onVcpu = (
  fields: Record<string, Field>,
  call: (vcpu: Vcpu, args: Checked) => unknown,
  returns?: Field,
): Method => ({
  handle: 'vcpu',
  fields: { vcpu: optional(number), ...fields },
  ...(returns && { returns }),
  call: ({ vcpu }, args) => call(vcpu, args),
});

const onHost = (
  fields: Record<string, Field>,
  call: (host: HostMemory, args: Checked) => unknown,
  returns?: Field,
): Method => ({
  handle: 'host',
  fields,
  ...(returns && { returns }),
  call: ({ host }, args) => call(host, args),
});

const onGuestMemfd = (
  fields: Record<string, Field>,
  call: (fd: GuestMemfd, args: Checked) => unknown,
  returns?: Field,
): Method => ({
  handle: 'guestMemfd',
  fields: { guestMemfd: { kind: 'guestMemfd' }, ...fields },
  ...(returns && { returns }),
  call: ({ guestMemfd }, args) => call(guestMemfd, args),
});

const REGION: Record<string, Field> = {
  slot: number,
  flags: optional(number),
  guestPhysAddr: u64,
  memorySize: u64,
  userspaceAddr: u64,
};

/** Pre-faults in as many calls as it takes: like the ioctl, the method may stop early and say what is left. */
function preFaultAll(vcpu: Vcpu, args: Checked): unknown {
  let rest = args;
  for (;;) {
    const left = vcpu.preFaultMemory(rest);
    if (BigInt(left.size) === 0n || BigInt(left.size) >= BigInt(rest.size)) return left;
    rest = { ...args, gpa: left.gpa, size: left.size };
  }
}

/**
 * The page-state changes that a guest asks for to change all of a range: by MSR a page at a time, by the GHCB in buffers of
 * 253 entries. Userspace converts each range (`answer: convert`) or refuses it. Returns the last response.
 */
function changePageState({ vm, vcpu }: Handles, args: Checked): string {
  const { protocol = 'ghcb', operation, pageSize = '4K', answer = 'convert' } = args;
  const answered = ({ gpa, npages, private: isPrivate }: MapGpaRangeExit): number => {
    if (answer === 'refuse') return 1;
    vm.setMemoryAttributes({ address: gpa, size: npages * 4096, attributes: isPrivate ? 8 : 0 });
    return 0;
  };
  const step = pageSize === '2M' ? 2 ** 21 : 4096;
  const first = Number(args.gpa);
  const end = first + Number(args.size);
  for (let at = first; at < end; ) {
    let response: PageStateResponse;
    if (protocol === 'msr') {
      response = vcpu.pageStateChange({ protocol, gpa: at, operation }, answered);
      at += 4096;
    } else {
      const count = Math.min(PSC_MAX_ENTRIES, Math.ceil((end - at) / step));
      const entries = Array.from({ length: count }, (_, index) => ({ gpa: at + index * step, operation, pageSize }));
      response = vcpu.pageStateChange({ protocol, entries }, answered);
      at += count * step;
    }
    if (response.response !== 'ok') return response.response;
  }
  return 'ok';
}

/** The methods, by the name a step has. */
export const METHODS: Readonly<Record<string, Method>> = {
  setUserMemoryRegion: onVm(REGION, (vm, args) => vm.setUserMemoryRegion(args)),
  setUserMemoryRegion2: onVm(
    { ...REGION, guestMemfd: optional({ kind: 'guestMemfd' }), guestMemfdOffset: optional(u64) },
    (vm, args) => vm.setUserMemoryRegion2({ ...args, ...(args.guestMemfd && { guestMemfd: args.guestMemfd.fd }) }),
  ),
  setMemoryAttributes: onVm({ address: u64, size: u64, attributes: u64, flags: optional(u64) }, (vm, args) =>
    vm.setMemoryAttributes(args),
  ),
  createGuestMemfd: {
    ...onVm({ size: u64, flags: optional(u64), folioSize: optional(word(...PAGE_SIZES)) }, (vm, args) =>
      vm.createGuestMemfd(args),
    ),
    names: 'guestMemfd',
  },
  enableCap: onVm({ cap: number, flags: optional(u64), args: optional({ kind: 'list' }) }, (vm, args) =>
    vm.enableCap(args),
  ),
  getDirtyLog: onVm(
    { slot: number },
    (vm, args) => vm.getDirtyLog(args).reduce((pages, run) => pages + run.count, 0),
    number,
  ),
  clearDirtyLog: onVm({ slot: number, firstPage: u64, numPages: u64, bitmap: optional(u64) }, (vm, args) =>
    vm.clearDirtyLog({ ...args, bitmap: args.bitmap === undefined ? 2n ** 64n - 1n : BigInt(args.bitmap) }),
  ),
  writeParameter: onVm({ name: word('nx_huge_pages', 'eager_page_split'), value: flag }, (vm, args) =>
    vm.writeParameter(args.name, args.value),
  ),
  recoverNxHugePages: onVm({}, (vm) => vm.recoverNxHugePages()),
  destroy: onVm({}, (vm) => vm.destroy()),

  unmapGfnRange: onVm(RANGE, (vm, args) => vm.unmapGfnRange(gfnRange(args)), flag),
  ageGfn: onVm(RANGE, (vm, args) => vm.ageGfn(gfnRange(args)), flag),
  testAgeGfn: onVm(RANGE, (vm, args) => vm.testAgeGfn(gfnRange(args)), flag),
  setSpteGfn: onVm(RANGE, (vm, args) => vm.setSpteGfn(gfnRange(args)), flag),
  zapGfnRange: onVm({ startGfn: number, endGfn: number }, (vm, args) => vm.zapGfnRange(args.startGfn, args.endGfn)),
  yieldAt: onVm({ gfn: number }, (vm, args) => vm.yieldAt(args.gfn)),

  fallocate: onGuestMemfd({ mode: number, ...BYTES }, (fd, { guestMemfd: _, ...args }) => fd.fallocate(args)),
  punchHole: onGuestMemfd(BYTES, (fd, { offset, length }) => fd.punchHole(offset, length)),
  allocate: onGuestMemfd(BYTES, (fd, { offset, length }) => fd.allocate(offset, length)),
  memoryError: onGuestMemfd({ pageIndex: number }, (fd, { pageIndex }) => fd.memoryError(pageIndex)),
  'guestMemfd.setMemoryAttributes': onGuestMemfd(
    { offset: u64, size: u64, attributes: u64, flags: optional(u64) },
    (fd, { guestMemfd: _, ...args }) => fd.setMemoryAttributes(args),
  ),
  hostAccess: onGuestMemfd(BYTES, (fd, { offset, length }) => fd.hostAccess({ offset, length })),
  elevateRefcount: onGuestMemfd({ pageIndex: number }, (fd, { pageIndex }) => fd.elevateRefcount(pageIndex)),
  dropRefcount: onGuestMemfd({ pageIndex: number }, (fd, { pageIndex }) => fd.dropRefcount(pageIndex)),
  close: onGuestMemfd({}, (fd) => fd.close()),

  run: onVcpu({}, (vcpu) => vcpu.run()),
  access: {
    ...onVcpu(
      { ...ACCESS, size: optional(u64), count: optional(number), stride: optional(u64) },
      (vcpu, args) => vcpu.access(args),
      REASONS,
    ),
    endsWell: 'done',
  },
  preFaultMemory: onVcpu({ gpa: u64, size: u64, flags: optional(u64) }, preFaultAll, u64),
  accept: onVcpu({ gpa: u64, size: u64, level: optional(number) }, (vcpu, args) => vcpu.accept(args), number),
  pageStateChange: {
    handle: 'vcpu',
    fields: {
      vcpu: optional(number),
      protocol: optional(word('msr', 'ghcb')),
      gpa: u64,
      size: u64,
      operation: word('private', 'shared', 'psmash', 'unsmash'),
      pageSize: optional(word(...PAGE_SIZES)),
      answer: optional(word('convert', 'refuse')),
    },
    returns: word('ok', 'INVALID_HDR', 'INVALID_ENTRY', 'GENERIC', 'MSR_ERROR'),
    endsWell: 'ok',
    call: changePageState,
  },
  pvalidate: {
    ...onVcpu(
      { gpa: u64, size: u64, pageSize: optional(word(...PAGE_SIZES)), validate: optional(flag) },
      (vcpu, args) => vcpu.pvalidate(args),
      word(...PVALIDATE_REASONS),
    ),
    endsWell: 'done',
  },
  rmpFault: onVcpu({ gpa: u64 }, (vcpu, args) => vcpu.rmpFault(args), word(...RMP_FAULT_OUTCOMES)),
  beginFault: { ...onVcpu(ACCESS, (vcpu, args) => vcpu.beginFault(args)), names: 'fault' },
  finishFault: onVcpu({ fault: { kind: 'fault' } }, (vcpu, { fault }) => vcpu.finishFault(fault), RESULTS),
  dropFault: onVcpu({ fault: { kind: 'fault' } }, (vcpu, { fault }) => vcpu.dropFault(fault)),
  setInGuest: onVcpu({ inGuest: flag }, (vcpu, { inGuest }) => vcpu.setInGuest(inGuest)),
  enterSmm: onVcpu({}, (vcpu) => vcpu.enterSmm()),
  leaveSmm: onVcpu({}, (vcpu) => vcpu.leaveSmm()),

  beginAccept: onVcpu({ gpa: u64, level: optional(number) }, (vcpu, args) => vcpu.beginAccept(args)),
  finishAccept: onVcpu({}, (vcpu) => vcpu.finishAccept(), word(...STATUS_NAMES)),
  beginEnter: onVcpu({}, (vcpu) => vcpu.beginEnter(), flag),
  finishEnter: onVcpu({}, (vcpu) => vcpu.finishEnter()),
  mapGpa: {
    ...onVcpu(
      { gpa: u64, size: u64, interruptAfter: optional(number) },
      (vcpu, args) => vcpu.mapGpa(args).status,
      word(...MAP_GPA_RESULTS),
    ),
    endsWell: 'SUCCESS',
  },
  initMemRegion: onVcpu(
    { gpa: u64, pages: u64, source: optional(u64), measure: optional(flag), signalAfter: optional(number) },
    (vcpu, args) => vcpu.initMemRegion(args),
  ),
  finalize: onVm({}, (vm) => vm.tdx.finalize()),
  terminate: onVm({}, (vm) => vm.tdx.terminate()),
  seamcall: onVm(
    { leaf: word(...CALLABLE_LEAFS), gpa: optional(u64), level: optional(number) },
    (vm, { leaf, ...args }) => vm.tdx.seamcall(leaf, args),
    word(...STATUS_NAMES),
  ),
  injectStatus: onVm(
    { leaf: word(...LEAF_NAMES), status: word(...STATUS_NAMES), skip: optional(number), times: optional(number) },
    (vm, args) => vm.tdx.injectStatus(args),
  ),

  mmap: onHost({ kind: word(...HOST_KINDS), ...AREA, prot: optional(number) }, (host, args) => host.mmap(args)),
  munmap: onHost(AREA, (host, args) => host.munmap(args)),
  mprotect: onHost({ ...AREA, prot: number }, (host, args) => host.mprotect(args)),
  madvise: onHost({ ...AREA, advice: word(...ADVICES), succeeds: optional(flag) }, (host, args) => host.madvise(args)),
  mremap: onHost({ old: u64, length: u64, new: u64 }, (host, args) => host.mremap(args)),
  'host.access': onHost({ ...AREA, write: flag, step: optional(number) }, (host, args) => host.access(args)),
  migrate: onHost(AREA, (host, args) => host.migrate(args)),
  changePte: onHost({ hva: u64, writable: flag }, (host, args) => host.changePte(args)),
  pageIdleSet: onHost({ hva: u64, pages: number }, (host, args) => host.pageIdleSet(args), number),
  age: onHost({ ...AREA, flush: optional(flag) }, (host, args) => host.age(args), flag),
  testAge: onHost({ hva: u64 }, (host, args) => host.testAge(args), flag),
  clearRefs: onHost({ kind: number }, (host, { kind }) => host.clearRefs(kind)),
  khugepaged: onHost(AREA, (host, args) => host.khugepaged(args)),
  ksm: onHost(AREA, (host, args) => host.ksm(args)),
  failHugePage: onHost(AREA, (host, args) => host.failHugePage(args)),
  invalidateRangeStart: onHost(
    { ...AREA, blockable: optional(flag) },
    (host, args) => host.invalidateRangeStart(args),
    flag,
  ),
  invalidateRangeEnd: onHost(AREA, (host, args) => host.invalidateRangeEnd(args)),
};

/** A step's method by its bare name, or with the handle before it: `madvise` and `host.madvise` are one. */
export function methodNamed(name: string): Method | undefined {
  if (Object.hasOwn(METHODS, name)) return METHODS[name];
  const [handle, bare, ...more] = name.split('.');
  if (bare === undefined || more.length > 0 || !Object.hasOwn(METHODS, bare)) return undefined;
  return METHODS[bare].handle === handle ? METHODS[bare] : undefined;
}
