// The vCPU records: which root each has loaded, which address space it is in, what it has yet to flush.
// Mirrors: struct kvm_vcpu (include/linux/kvm_host.h), struct kvm_mmu (arch/x86/include/asm/kvm_host.h)

import { ctl } from './control';
import { VCPU_BYTES, VCPUS_BASE } from './layout';

// Vcpu, 64 bytes. A root is an index + 1, 0 = none.
@unmanaged
export class Vcpu {
  root: u32;
  mirrorRoot: u32;
  asId: u32;
  everRun: u32;
  flushEpoch: u32;
  inGuest: u32;
  pad: u32;
  mmioValid: u32;
  mmioGfn: u64;
  mmioGeneration: u32;
  dead: u32;
  pad0: u64;
  pad1: u64;
}
if (offsetof<Vcpu>() != 64) ERROR('Vcpu is no longer 64 bytes: redraw it');

export function vcpuAt(index: u32): Vcpu {
  return changetype<Vcpu>(VCPUS_BASE + <usize>index * VCPU_BYTES);
}

/** vCPUs running guest code at this moment. */
export function vcpusInGuest(): u32 {
  let running: u32 = 0;
  for (let index: u32 = 0; index < ctl.vcpuCount; index++) running += vcpuAt(index).inGuest;
  return running;
}
