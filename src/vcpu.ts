// A vCPU: what the guest does, and the ioctl that a VMM calls on it.

import { GATE_VCPU } from './engine/exports.ts';
import { boolean, check, errnoName, errorOf, halvesOf, integer, KvmError, object, oneOf } from './errors.ts';
import type { U64, Vm } from './vm.ts';

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
  reason: 'done' | 'mmio' | 'memory_fault' | 'error' | 'retry' | 've';
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

export type FaultResult = 'fixed' | 'spurious' | 'retry' | 'emulate' | 'memory_fault' | 'error' | 'frozen';
const RESULTS: Readonly<Record<number, FaultResult>> = {
  1: 'retry',
  2: 'emulate',
  3: 'fixed',
  4: 'spurious',
  6: 'frozen',
  7: 'memory_fault',
};
const EXITS = ['done', 'mmio', 'memory_fault', 'error', 'retry', 've'] as const;

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
    const kind = KINDS.indexOf(oneOf(args.kind, 'kind', KINDS));
    const gpa = gpaOf(args.gpa);
    const stride = args.stride === undefined ? 1 : gfnsOf(args.stride, 'stride');
    let count = args.count === undefined ? 1 : integer(args.count, 'count', 0, 2 ** 40);
    if (args.size !== undefined) count = Math.ceil(Number(sizeOf(args.size, 'size')) / 4096);
    const vm = this.#vm;
    const gfn = Math.floor(gpa / 4096);
    return vm.access(this.index, gfn, kind, modeOf(args.private), count, stride, (status) => {
      if (status < 0) throw errorOf(status, 'access', args as never);
      const done = vm.result(3);
      const reached = gpa + done * stride * 4096;
      const exact = reached <= Number.MAX_SAFE_INTEGER;
      const exit: Exit = {
        reason: EXITS[status],
        gpa: exact ? BigInt(reached) : BigInt(gpa) + BigInt(done) * BigInt(stride) * 4096n,
        done,
      };
      if (status === 0) return exit;
      if (exit.reason === 'mmio') exit.isWrite = args.kind === 'write';
      if (exit.reason === 'memory_fault') {
        exit.gpa = BigInt(vm.result(0)) * 4096n;
        exit.size = 4096n;
        exit.flags = vm.result(1);
      }
      if (vm.result(2) < 0) exit.errno = errnoName(-vm.result(2));
      return exit;
    });
  }

  /**
   * The first phase of a fault: takes the sequence count, checks attributes and slot, finds the page.
   * @returns an id for finishFault()
   */
  beginFault(args: { gpa: U64; kind: AccessKind; private?: boolean }): number {
    object(args, 'args');
    const kind = KINDS.indexOf(oneOf(args.kind, 'kind', KINDS));
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
   * TDG.MEM.PAGE.ACCEPT for each 4K page of [gpa, gpa + size) bytes, mapping those that are not mapped.
   * @returns how many pages were PENDING and are now the guest's
   * @throws {KvmError} EINVAL on a VM that is no TD or a range that is not page aligned; EFAULT if a gfn is shared or has no slot
   */
  accept(args: { gpa: U64; size: U64 }): number {
    object(args, 'args');
    const gpa = gpaOf(args.gpa);
    const size = Number(sizeOf(args.size, 'size'));
    if (gpa % 4096 !== 0 || size % 4096 !== 0) {
      throw new KvmError(
        'EINVAL',
        'accept',
        `accept(gpa 0x${gpa.toString(16)}, size 0x${size.toString(16)}): EINVAL: not page aligned`,
      );
    }
    const vm = this.#vm;
    return vm.operate('abiAccept', [this.index, gpa / 4096, (gpa + size) / 4096], GATE_VCPU, (status) => {
      check(status, 'accept', args as never);
      return vm.result(0);
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

/** 0 shared, 1 private, 2 as hardware would tell. */
function modeOf(isPrivate: unknown): number {
  if (isPrivate === undefined) return 2;
  if (typeof isPrivate !== 'boolean') throw new TypeError(`private is ${String(isPrivate)}: it must be a boolean`);
  return isPrivate ? 1 : 0;
}

const GPA_END = 2 ** 52;
function gpaOf(value: unknown): number {
  if (typeof value === 'number' && Number.isInteger(value) && value >= 0 && value < GPA_END) return value;
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
