// A vCPU: what the guest does, and the ioctl that a VMM calls on it.

import { GATE_VCPU } from './engine/exports.ts';
import { boolean, check, errnoName, errorOf, halvesOf, integer, KvmError, object, oneOf, type U64 } from './errors.ts';
import {
  alignedGfn,
  decodePsc,
  encodeEntries,
  type MapGpaRangeExit,
  msrArguments,
  PAGE_SIZES,
  type PageSize,
  type PageStateChange,
  type PageStateResponse,
  PVALIDATE_REASONS,
  type PvalidateResult,
  RMP_FAULT_OUTCOMES,
  type RmpFaultOutcome,
} from './snp.ts';
import { STATUS_NAMES, type TdxStatus } from './tdx.ts';
import type { Vm } from './vm.ts';

const KINDS = ['read', 'write', 'exec'] as const;
export type AccessKind = (typeof KINDS)[number];

export interface Access {
  /** Guest physical address; on a TD with the shared bit for a shared access. */
  gpa: U64;
  kind: AccessKind;
  /** Default: as hardware tells (a TD: by the shared bit; elsewhere as the attribute says). */
  private?: boolean;
  /** How many accesses (default 1), `stride` bytes apart (default 4096); stops at the first that exits. */
  count?: number;
  stride?: U64;
  /** Bytes to touch, a page at a time: another way to say `count`. */
  size?: U64;
}

/** How an access ended. */
export interface Exit {
  reason: 'done' | 'mmio' | 'memory_fault' | 'error' | 'retry' | 've' | 'vc';
  /** Address of the access that ended it. */
  gpa: bigint;
  /** Accesses that were done before it. */
  done: number;
  /** KVM_EXIT_MEMORY_FAULT: bytes, and flags (8 = private). */
  size?: bigint;
  flags?: number;
  isWrite?: boolean;
  /** Errno name that KVM_RUN returns. */
  errno?: string;
}

/** One KVM_EXIT_HYPERCALL(KVM_HC_MAP_GPA_RANGE): without the shared bit, and which way it goes. */
export interface MapGpaExit {
  gpa: bigint;
  npages: number;
  private: boolean;
}
/** How a MapGPA ended, and the exits to userspace that it took. */
export interface MapGpaResult {
  status: (typeof MAP_GPA_RESULTS)[number];
  r11?: bigint;
  exits: MapGpaExit[];
}
const MAP_GPA_STATUSES = ['SUCCESS', 'INVALID_OPERAND', 'ALIGN_ERROR', 'SUBFUNC_UNSUPPORTED'] as const;
export const MAP_GPA_RESULTS = [...MAP_GPA_STATUSES, 'RETRY'] as const;
/** TDX_MAP_GPA_MAX_LEN. */
const MAP_GPA_CHUNK = 2n * 1024n * 1024n;

export type FaultResult = 'fixed' | 'spurious' | 'retry' | 'emulate' | 'memory_fault' | 'error' | 'frozen';
const RESULTS: Readonly<Record<number, FaultResult>> = {
  1: 'retry',
  2: 'emulate',
  3: 'fixed',
  4: 'spurious',
  6: 'frozen',
  7: 'memory_fault',
};
/** Of Vm.access(), none of the engine's own: left to operate(), within steps() or after the engine failed. */
export const ACCESS_IN_PIECES = 1000;
const EXITS = ['done', 'mmio', 'memory_fault', 'error', 'retry', 've', 'vc'] as const;

export class Vcpu {
  readonly #vm: Vm;
  readonly index: number;

  /** Made with the VM. */
  constructor(vm: Vm, index: number) {
    this.#vm = vm;
    this.index = index;
  }

  /**
   * KVM_PRE_FAULT_MEMORY: maps [gpa, gpa + size) bytes as read faults would.
   * @returns what is left over: size 0 when all was mapped
   * @throws {KvmError} EINVAL, ENOENT (no slot), EFAULT (nothing backs it), EINTR (it would retry for ever), each only if
   *   nothing was mapped; `left` is then what the kernel leaves in the struct
   */
  preFaultMemory(args: { gpa: U64; size: U64; flags?: U64 }): { gpa: bigint; size: bigint } {
    object(args, 'args');
    const gpa = halvesOf(args.gpa, 'gpa');
    const size = halvesOf(args.size, 'size');
    const flags = halvesOf(args.flags ?? 0, 'flags');
    const vm = this.#vm;
    const left = () => ({
      gpa: BigInt(vm.result(0)) * 4096n,
      size: BigInt(vm.result(1)) + (BigInt(vm.result(2)) << 32n),
    });
    return vm.operate(
      'abiPreFaultMemory',
      [this.index, ...gpa, ...size, ...flags],
      GATE_VCPU,
      (status) => {
        if (status >= 0) return left();
        const error = errorOf(status, 'preFaultMemory', args);
        error.left = status === -22 ? { gpa: BigInt(args.gpa), size: BigInt(args.size) } : left();
        throw error;
      },
      'preFaultMemory',
    );
  }

  /** One KVM_RUN without an access: obsolete roots are dropped, new ones loaded, owed flushes done. */
  run(): void {
    this.#vm.operate('vcpuRun', [this.index], GATE_VCPU, (status) => void check(status, 'run', { vcpu: this.index }));
  }

  /** Whether the vCPU is running guest code at this moment: a remote flush then kicks it. */
  setInGuest(inGuest: boolean): void {
    const values = { vcpu: this.index, inGuest };
    this.#vm.operate('vcpuSetInGuest', [this.index, boolean(inGuest, 'inGuest') ? 1 : 0], GATE_VCPU, (status) => {
      check(status, 'setInGuest', values);
    });
  }

  /**
   * Guest accesses, with every fault they take: enters the guest, touches, and exits where userspace must act.
   * @throws {KvmError} ENOMEM if the VM would outgrow its memory
   */
  access(args: Access): Exit {
    object(args, 'args');
    const kind = kindOf(args.kind);
    const gpa = gpaOf(args.gpa);
    const { count, stride, size } = args;
    if (count !== undefined || stride !== undefined || size !== undefined || args.private !== undefined) {
      return accessAll(this.#vm, this.index, args);
    }
    // Short, as all that it calls is: V8 inlines it where it is called, and makes no object then that the caller drops.
    const status = this.#vm.access(this.index, gpa / 4096, kind, 2, 1, 1);
    if (status !== 0) return exitOf(this.#vm, this.index, args, status);
    return { reason: 'done', gpa: bigintOf(gpa + 4096), done: 1 };
  }

  /**
   * The first phase of a fault: takes the sequence count, checks attributes and slot, finds the page.
   * @returns an id for finishFault()
   */
  beginFault(args: { gpa: U64; kind: AccessKind; private?: boolean }): number {
    object(args, 'args');
    const kind = kindOf(args.kind);
    const gfn = Math.floor(gpaOf(args.gpa) / 4096);
    return this.#vm.operate('abiBeginFault', [this.index, gfn, kind, modeOf(args.private)], GATE_VCPU, (status) =>
      check(status, 'beginFault', args as never),
    );
  }

  /**
   * The second phase: installs, or learns that the fault went stale. 'frozen' (mirror roots): call it again to let the
   * module's call return.
   * @throws {KvmError} EINVAL if there is no such fault; EIO if it would have swapped a present leaf's pfn (the VM is dead)
   */
  finishFault(id: number): FaultResult {
    integer(id, 'id', 0, 2 ** 31 - 1);
    return this.#vm.operate('vcpuFinishFault', [id], GATE_VCPU, (status) => {
      if (status > 0) return RESULTS[status];
      if (status < -4096 || status === -5) check(status, 'finishFault', { id });
      return 'error';
    });
  }

  /** Gives up a fault that was begun. */
  dropFault(id: number): void {
    integer(id, 'id', 0, 2 ** 31 - 1);
    this.#vm.operate('vcpuDropFault', [id], GATE_VCPU, (status) => void check(status, 'dropFault', { id }));
  }

  /**
   * TDG.MEM.PAGE.ACCEPT for each page of [gpa, gpa + size) bytes, mapping those that are not mapped: pages of 4K, or of 2M
   * with `level` 2 where they fit (down to 4K where a leaf is smaller).
   * @returns how many 4K pages were PENDING and are now the guest's
   * @throws {KvmError} EINVAL on a VM that is no TD, is not finalized, or a range that is not page aligned; EFAULT if a gfn is
   *   shared or has no slot; EBUSY if the module stays busy; EINTR under an invalidation that does not end
   */
  accept(args: { gpa: U64; size: U64; level?: 1 | 2 }): number {
    object(args, 'args');
    const level = integer(args.level ?? 1, 'level', 1, 2);
    const gpa = gpaOf(args.gpa);
    const size = sizeOf(args.size, 'size');
    if (gpa % 4096 !== 0 || size % 4096 !== 0) {
      throw new KvmError(
        'EINVAL',
        'accept',
        `accept(gpa 0x${gpa.toString(16)}, size 0x${size.toString(16)}): EINVAL: not page aligned`,
      );
    }
    const vm = this.#vm;
    return vm.operate('abiAccept', [this.index, gpa / 4096, (gpa + size) / 4096, level], GATE_VCPU, (status) => {
      check(status, 'accept', args as never);
      return vm.result(0);
    });
  }

  /**
   * The first half of an ACCEPT: the module holds the S-EPT tree, shared, and the page's entry until finishAccept(), or until
   * a kick ends it.
   * @throws {KvmError} EINVAL: no TD, not aligned to `level`; EBUSY: the tree is locked, or an accept is under way
   */
  beginAccept(args: { gpa: U64; level?: 1 | 2 }): void {
    object(args, 'args');
    const level = integer(args.level ?? 1, 'level', 1, 2);
    const gpa = gpaOf(args.gpa);
    if (gpa % 4096 !== 0) {
      throw new KvmError('EINVAL', 'beginAccept', `beginAccept(gpa 0x${gpa.toString(16)}): EINVAL: not page aligned`);
    }
    this.#vm.operate('vcpuBeginAccept', [this.index, gpa / 4096, level], GATE_VCPU, (status) => {
      check(status, 'beginAccept', args as never);
    });
  }
  /** The second half. @returns its status. @throws {KvmError} EINVAL if none is under way: a kick has ended it */
  finishAccept(): TdxStatus {
    return this.#vm.operate('vcpuFinishAccept', [this.index], GATE_VCPU, (status) => {
      return STATUS_NAMES[check(status, 'finishAccept', { vcpu: this.index })];
    });
  }

  /**
   * TDH.VP.ENTER. After six EPT faults without progress it checks the faulting addresses first, with the S-EPT tree locked
   * until finishEnter(), or until a kick.
   * @returns whether it is checking; else the vCPU is inside and runs guest code
   * @throws {KvmError} EINVAL: no TD, not finalized; EBUSY: the tree is locked, or the vCPU is inside
   */
  beginEnter(): boolean {
    return this.#vm.operate('vcpuBeginEnter', [this.index], GATE_VCPU, (status) => {
      return check(status, 'beginEnter', { vcpu: this.index }) === 1;
    });
  }
  /** The check is done, the vCPU is inside. @throws {KvmError} EINVAL if none is under way */
  finishEnter(): void {
    this.#vm.operate('vcpuFinishEnter', [this.index], GATE_VCPU, (status) => {
      check(status, 'finishEnter', { vcpu: this.index });
    });
  }

  /**
   * TDG.VP.VMCALL<MapGPA> of [gpa, gpa + size) bytes: to shared if `gpa` has the shared bit, else to private, in chunks of
   * 2 MiB, each a KVM_EXIT_HYPERCALL that `complete` answers with the hypercall's return value. By default it sets the memory
   * attributes and returns 0. An interrupt is pending after `interruptAfter` chunks (default: none).
   * @returns the status that the guest sees, with the address in `r11` where it was not done to the end
   * @throws {KvmError} EINVAL on a VM that is no TD
   */
  mapGpa(args: {
    gpa: U64;
    size: U64;
    complete?: (exit: MapGpaExit) => number;
    interruptAfter?: number;
  }): MapGpaResult {
    object(args, 'args');
    const vm = this.#vm;
    const [gpaLow, gpaHigh] = halvesOf(args.gpa, 'gpa');
    const size = halvesOf(args.size, 'size');
    const interruptAfter = integer(
      args.interruptAfter ?? Number.MAX_SAFE_INTEGER,
      'interruptAfter',
      1,
      Number.MAX_SAFE_INTEGER,
    );
    const complete = args.complete ?? ((exit: MapGpaExit) => this.#convert(exit));
    if (typeof complete !== 'function') throw new TypeError('complete must be a function');
    const refusal = vm.operate('abiMapGpa', [this.index, gpaLow, gpaHigh, ...size], GATE_VCPU, (status) =>
      check(status, 'mapGpa', { gpa: args.gpa, size: args.size }),
    );
    const exits: MapGpaExit[] = [];
    if (refusal !== 0) return { status: MAP_GPA_STATUSES[refusal], exits };
    const shared = 1n << BigInt(vm.options.gpaw - 1);
    const start = BigInt(args.gpa);
    const end = start + BigInt(args.size);
    const toShared = (start & shared) !== 0n;
    for (let at = start; at < end; at += MAP_GPA_CHUNK) {
      const bytes = end - at < MAP_GPA_CHUNK ? end - at : MAP_GPA_CHUNK;
      const exit: MapGpaExit = { gpa: at & ~shared, npages: Number(bytes / 4096n), private: !toShared };
      exits.push(exit);
      vm.operate('countHypercallExit', [], GATE_VCPU, () => undefined);
      if (complete(exit) !== 0) return { status: 'INVALID_OPERAND', r11: at, exits };
      const next = at + bytes;
      if (next < end && exits.length >= interruptAfter) return { status: 'RETRY', r11: next, exits };
    }
    return { status: 'SUCCESS', exits };
  }
  #convert(exit: MapGpaExit): number {
    const size = BigInt(exit.npages) * 4096n;
    this.#vm.setMemoryAttributes({ address: exit.gpa, size, attributes: exit.private ? 8 : 0 });
    return 0;
  }

  /**
   * KVM_TDX_INIT_MEM_REGION, while the TD is built: adds `pages` pages from `gpa` on with the content at `source` (an hva;
   * what it holds is not simulated), measured or not. A signal is pending after `signalAfter` pages (default: none).
   * @throws {KvmError} EINVAL: no TD, finalized, misaligned, empty, wrapping, shared, no guest_memfd, not private; EEXIST: a
   *   page is there already; EINTR, EBUSY. Its `left` is what the kernel leaves in the struct
   */
  initMemRegion(args: { gpa: U64; pages: U64; source?: U64; measure?: boolean; signalAfter?: number }): void {
    object(args, 'args');
    const vm = this.#vm;
    const values = [
      this.index,
      ...halvesOf(args.gpa, 'gpa'),
      ...halvesOf(args.pages, 'pages'),
      ...halvesOf(args.source ?? 0, 'source'),
      boolean(args.measure ?? false, 'measure') ? 1 : 0,
      args.signalAfter === undefined
        ? Number.POSITIVE_INFINITY
        : integer(args.signalAfter, 'signalAfter', 0, Number.MAX_SAFE_INTEGER),
    ];
    vm.operate('abiInitMemRegion', values, GATE_VCPU, (status) => {
      if (status >= 0) return;
      const error = errorOf(status, 'initMemRegion', args as never);
      error.left = { gpa: BigInt(vm.result(0)) * 4096n, size: BigInt(vm.result(1)) * 4096n };
      throw error;
    });
  }

  /**
   * A page-state change that an SNP guest asks for, by the MSR protocol or the GHCB's buffer. Where userspace must act it
   * returns the exit, to be answered with completePageStateChange(); with `answer` each exit is answered by what that
   * returns (0: done), and the guest's response comes back at once.
   * @throws {KvmError} EINVAL on a VM that is no SNP guest; EBUSY while another of this vCPU waits for its answer
   */
  pageStateChange(change: PageStateChange, answer: (exit: MapGpaRangeExit) => number): PageStateResponse;
  pageStateChange(change: PageStateChange): MapGpaRangeExit | PageStateResponse;
  pageStateChange(
    change: PageStateChange,
    answer?: (exit: MapGpaRangeExit) => number,
  ): MapGpaRangeExit | PageStateResponse {
    object(change, 'change');
    if (answer !== undefined && typeof answer !== 'function') {
      throw new TypeError(`answer is ${String(answer)}: it must be a function`);
    }
    let next: MapGpaRangeExit | PageStateResponse;
    if (oneOf(change.protocol, 'protocol', ['msr', 'ghcb'] as const) === 'msr') {
      next = this.#psc('pscBeginMsr', msrArguments(change as PageStateChange & { protocol: 'msr' }));
    } else {
      const { entries, curEntry = 0, endEntry } = change as PageStateChange & { protocol: 'ghcb' };
      const words = encodeEntries(entries);
      const first = integer(curEntry, 'curEntry', 0, 65_535);
      const last = integer(endEntry === undefined ? entries.length - 1 : endEntry, 'endEntry', 0, 65_535);
      this.#vm.putIo(words);
      next = this.#psc('pscBegin', [first, last, entries.length]);
    }
    if (answer === undefined) return next;
    const exits: MapGpaRangeExit[] = [];
    while (next.reason === 'hypercall') {
      exits.push(next);
      next = this.completePageStateChange(answer(next));
    }
    return { ...next, exits };
  }

  /**
   * KVM_RUN after the exit of a page-state change. `ret` is what userspace leaves in run->hypercall.ret: 0 for done.
   * @throws {KvmError} EINVAL if none waits
   */
  completePageStateChange(ret = 0): MapGpaRangeExit | PageStateResponse {
    return this.#psc('pscComplete', [integer(ret, 'ret', -(2 ** 31), 2 ** 32 - 1)]);
  }

  #psc(call: 'pscBegin' | 'pscBeginMsr' | 'pscComplete', args: number[]): MapGpaRangeExit | PageStateResponse {
    const vm = this.#vm;
    const method = call === 'pscComplete' ? 'completePageStateChange' : 'pageStateChange';
    return vm.operate(call, [this.index, ...args], GATE_VCPU, (status) => {
      if (status === EBUSY) {
        const why = 'EBUSY: its last page-state change waits for completePageStateChange()';
        throw new KvmError('EBUSY', method, `${method}(vcpu ${this.index}): ${why}`);
      }
      check(status, method, { vcpu: this.index });
      return decodePsc(status, (index) => vm.result(index));
    });
  }

  /**
   * What KVM does with an #NPF that has the RMP bit: splits a 2M RMP entry, and zaps what maps the 512 gfns from there on.
   * access() and pvalidate() take such faults by themselves.
   * @throws {KvmError} EINVAL on a VM that is no SNP guest
   */
  rmpFault(args: { gpa: U64 }): RmpFaultOutcome {
    object(args, 'args');
    const gfn = Math.floor(gpaOf(args.gpa) / 4096);
    return this.#vm.operate('abiRmpFault', [this.index, gfn], GATE_VCPU, (status) => {
      check(status, 'rmpFault', args as never);
      return RMP_FAULT_OUTCOMES[status];
    });
  }

  /**
   * PVALIDATE of each page of [gpa, gpa + size) bytes, by `pageSize` (default '4K'); stops at the first that is not done.
   * `validate: false` rescinds the validation.
   * @throws {KvmError} EINVAL on a VM that is no SNP guest, or a range that is not aligned to the page size
   */
  pvalidate(args: { gpa: U64; size: U64; pageSize?: PageSize; validate?: boolean }): PvalidateResult {
    object(args, 'args');
    const first = alignedGfn(args.gpa, 'gpa');
    const level = oneOf(args.pageSize ?? '4K', 'pageSize', PAGE_SIZES) === '2M' ? 2 : 1;
    const values = [
      first,
      first + gfnsOf(args.size, 'size'),
      level,
      boolean(args.validate ?? true, 'validate') ? 1 : 0,
    ];
    const vm = this.#vm;
    return vm.operate('abiPvalidate', [this.index, ...values], GATE_VCPU, (status) => {
      check(status, 'pvalidate', args as never);
      const errno = vm.result(3) < 0 ? { errno: errnoName(-vm.result(3)) } : {};
      const gpa = BigInt(vm.result(0)) * 4096n;
      return { reason: PVALIDATE_REASONS[status], gpa, changed: vm.result(1), unchanged: vm.result(2), ...errno };
    });
  }

  /** Enters system management mode: the second address space. */
  enterSmm(): void {
    this.#setAddressSpace(1, 'enterSmm');
  }
  leaveSmm(): void {
    this.#setAddressSpace(0, 'leaveSmm');
  }
  #setAddressSpace(asId: number, call: string): void {
    this.#vm.operate('abiSetAddressSpace', [this.index, asId], GATE_VCPU, (status) => {
      check(status, call, { vcpu: this.index });
    });
  }
}

const EBUSY = -16;

// --- Of an access ----------------------------------------------------------------------------------------------------

/** The accesses that `args` ask for; a gfn's fraction is dropped in the engine. */
function accessAll(vm: Vm, vcpu: number, args: Access): Exit {
  const gpa = gpaOf(args.gpa);
  const stride = strideOf(args);
  const count = countOf(args);
  const status = vm.access(vcpu, gpa / 4096, kindOf(args.kind), modeOf(args.private), count, stride);
  if (status !== 0) return exitOf(vm, vcpu, args, status);
  return { reason: 'done', gpa: addressOf(gpa, count, stride), done: count };
}

/** What access() returns or throws where its accesses cannot be made at once, or not all of them were done. */
function exitOf(vm: Vm, vcpu: number, args: Access, status: number): Exit {
  const gpa = gpaOf(args.gpa);
  const stride = strideOf(args);
  if (status === ACCESS_IN_PIECES) {
    const values = [vcpu, gpa / 4096, kindOf(args.kind), modeOf(args.private), countOf(args), stride];
    return vm.operate('abiAccess', values, GATE_VCPU, (end) => exitOf(vm, vcpu, args, end), 'access');
  }
  if (status < 0) throw errorOf(status, 'access', args as never);
  const done = vm.result(3);
  const exit: Exit = { reason: EXITS[status], gpa: addressOf(gpa, done, stride), done };
  if (status === 0) return exit;
  if (exit.reason === 'mmio') exit.isWrite = args.kind === 'write';
  if (exit.reason === 'memory_fault') {
    exit.gpa = BigInt(vm.result(0)) * 4096n;
    exit.size = 4096n;
    exit.flags = vm.result(1);
  }
  if (vm.result(2) < 0) exit.errno = errnoName(-vm.result(2));
  return exit;
}

/** 0 shared, 1 private, 2 as hardware would tell. */
function modeOf(isPrivate: unknown): number {
  return isPrivate === undefined ? 2 : modeAsked(isPrivate);
}
function modeAsked(isPrivate: unknown): number {
  return boolean(isPrivate, 'private') ? 1 : 0;
}

function kindOf(kind: unknown): number {
  return kind === 'write' ? 1 : kind === 'read' ? 0 : kindAsked(kind);
}
function kindAsked(kind: unknown): number {
  return KINDS.indexOf(oneOf(kind, 'kind', KINDS));
}

function strideOf({ stride }: Access): number {
  return stride === undefined ? 1 : gfnsOf(stride, 'stride');
}
/** How many accesses: `size` counts before `count`, the pages of [gpa, gpa + size). */
function countOf({ gpa, count, size }: Access): number {
  const asked = count === undefined ? 1 : integer(count, 'count', 0, 2 ** 40);
  if (size === undefined) return asked;
  const bytes = sizeOf(size, 'size');
  return bytes === 0 ? 0 : Math.ceil(((gpaOf(gpa) % 4096) + bytes) / 4096);
}

/** `gpa` and `steps` strides of `stride` gfns. */
function addressOf(gpa: number, steps: number, stride: number): bigint {
  const address = gpa + steps * stride * 4096;
  if (address <= Number.MAX_SAFE_INTEGER) return bigintOf(address);
  return BigInt(gpa) + BigInt(steps) * BigInt(stride) * 4096n;
}
/** BigInt() of an address below 2^53, of two parts that V8 takes as machine integers: a third of the time. */
function bigintOf(address: number): bigint {
  return BigInt.asUintN(64, BigInt((address / 4194304) | 0) * 4194304n + BigInt(address & 0x3fffff));
}

const GPA_END = 2 ** 52;
function gpaOf(value: unknown): number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value < GPA_END
    ? value
    : gpaOfU64(value);
}
function gpaOfU64(value: unknown): number {
  const [low, high] = halvesOf(value, 'gpa');
  const gpa = low + high * 4294967296;
  if (gpa >= GPA_END) throw new RangeError(`gpa is 0x${gpa.toString(16)}: it must be below 2^52`);
  return gpa;
}
function sizeOf(value: unknown, name: string): number {
  const [low, high] = halvesOf(value, name);
  const size = low + high * 4294967296;
  if (size > GPA_END) throw new RangeError(`${name} is ${size}: it must be at most 2^52 bytes`);
  return size;
}
function gfnsOf(value: unknown, name: string): number {
  const bytes = sizeOf(value, name);
  if (bytes % 4096 !== 0) throw new RangeError(`${name} is ${bytes}: it must be a multiple of 4096`);
  return bytes / 4096;
}
