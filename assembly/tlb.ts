// Remote TLB flushes, counted. A flush is a request to every vCPU: those in guest mode are kicked, the others flush when
// they next enter. x86 on bare metal has no ranged flush, so a ranged one is a full request with a name.
// Mirrors: virt/kvm/kvm_main.c (kvm_flush_remote_tlbs), arch/x86/kvm/mmu/mmu.c (kvm_flush_remote_tlbs_range)

import { C_REMOTE_TLB_FLUSH, C_REMOTE_TLB_FLUSH_REQUESTS, count, ctl } from './control';
import { EV_FLUSH, EV_FLUSH_RANGE, EV_REQ, trace, trace2 } from './trace';
import { vcpusInGuest } from './vcpus';

/** KVM_REQ_TLB_FLUSH and KVM_REQ_MMU_FREE_OBSOLETE_ROOTS as the tracepoint shows them. */
export const REQ_TLB_FLUSH: u32 = 768;
export const REQ_FREE_OBSOLETE_ROOTS: u32 = 807;

/** Mirrors: kvm_flush_remote_tlbs(), virt/kvm/kvm_main.c */
export function flushRemoteTlbs(): void {
  count(C_REMOTE_TLB_FLUSH_REQUESTS, 1);
  trace(EV_FLUSH, 0, 0, 0);
  trace(EV_REQ, 0, REQ_TLB_FLUSH, 0);
  ctl.flushEpoch++;
  ctl.flushOwed = 0;
  if (vcpusInGuest() > 0) count(C_REMOTE_TLB_FLUSH, 1);
}

/** Mirrors: kvm_flush_remote_tlbs_range(), virt/kvm/kvm_main.c */
export function flushRemoteTlbsRange(startGfn: u64, npages: u64): void {
  trace2(EV_FLUSH_RANGE, 0, 0, startGfn, npages, 0);
  flushRemoteTlbs();
}
