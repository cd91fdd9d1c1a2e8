/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A model of how vfio-pci takes a BAR back from importers and gives it back, for
 * spin. 'make check' searches all states of it.
 *
 * To be read beside drivers/vfio/pci/vfio_pci_dmabuf.c: inlines have the names of
 * the functions that they model. The others:
 *
 *	memory_lock_section()	whoever takes memory_lock for write: resets, memory
 *				decode, D3hot, runtime PM
 *	export()		dma_buf_publish(), of buffer 1
 *	listed_set_state(), listed_drain()
 *				one turn of the loop in dma_bufs_set_state() and
 *				dma_bufs_drain(), if the buffer is on the list
 *	invalidate_mappings()	dma_buf_attach_ops.invalidate_mappings of one importer,
 *				if it is attached and has that
 *	dynamic_importer()	an ordinary driver and its user, as
 *				drivers/dma-buf/dma-buf-test-importer.c
 *	unmap_work()		dbti_unmap_work(): the late unmap
 *	iommufd()		drivers/iommu/iommufd/dmabuf.c
 *	engine()		the importer's device: DMA, and the end of it
 *
 * Properties:
 *
 *	bar_answers	nobody accesses a BAR that is switched off
 *	taken		nothing is mapped between a revoke and the restore
 *	gone		a buffer that is DEAD stays so, and there are no others
 *			once the device is closed or unbound
 *	waits		nobody who has been refused or has lost a mapping is left
 *			out when the memory is back
 *	filled		what iommufd should map is mapped while the memory is there,
 *			and nothing else
 *	nr_mapped	is never negative, and zero after the close
 *	invalid end	(of spin) there is no deadlock
 *	revoke_ends	a wait for importers ends, whatever users do, if importers
 *			end DMA and unmap when told. This needs weak fairness.
 *
 * A step that is left out or misplaced is named by BUG, and breaks one of these.
 *
 * There are two importers and two buffers, of which the second one is exported at
 * some time. Importers come, go and change their kind and buffer at any time. Of
 * memory_lock_section(), unbind() and close() any two run in parallel: 3.4 million
 * states. With -DALL_AT_ONCE all three do: 14.6 million. revoke_ends is checked for
 * any two, both buffers exported: 4.0 million.
 *
 * Work under a lock that waits for nothing is one step: what others can do in the
 * middle of it, they can as well do before or after. The wait for fences is for those
 * that there are when the importers have been told. Waiters for a lock get it in turn.
 *
 * More can happen here than in the kernel: close() races all of the sections, and
 * not only a runtime resume.
 *
 * Not modelled: memory ordering, refcounts and the release of a buffer, failing
 * allocations, BARs mapped by the CPU, several devices in one hot reset.
 */

mtype:bug = {
	NONE, NO_FENCE_WAIT, NO_UNMAP_WAIT, NO_INVALIDATE, NO_REINVALIDATE,
	NO_MAP_CHECK, NO_PIN_CHECK, CHECK_BEFORE_LOCK, INVALIDATE_FIRST,
	LATE_REVOKE, WAIT_UNDER_RESV, FENCES_ADDED, EARLY_RESTORE,
	RESTORE_AFTER_DEAD, DEAD_NOT_DRAINED, CLOSE_NOT_DRAINED, EXPORT_UNLOCKED,
	EXPORT_AFTER_UNBIND, NON_REVOCABLE_ALLOWED, NO_REVOKED_CHECK,
	UNMAP_TWICE, NO_RESTORE, RESTORE_UNASKED,
	RESTORE_UNFILLED, UNBIND_NOT_REVOKED
};

#ifndef BUG
#define BUG	NONE
#endif
#define bug(x)	(BUG == x)

mtype:state = { LIVE, REVOKED, DEAD };
mtype:kind = { DETACHED, DYNAMIC, IOMMUFD, NOT_REVOCABLE };
mtype:fence = { IDLE, DMA, SYNC_FILE };

/* struct vfio_pci_core_device */
chan memory_lock = [2] of { pid };
bool bar_answers = true;		/* vfio_pci_memory_accessible() */
bool dma_bufs_stopped;

/* struct vfio_pci_dma_buf */
chan resv[2] = [3] of { pid };
mtype:state state[2] = REVOKED;
bool dying[2];
byte nr_mapped[2];
bool listed[2];				/* on dma_bufs */
bool fd[2];				/* importers can get at it */
bool fences[4];				/* those at the revoke that are yet to signal */
#define snapshot(b, i)	fences[2 * b + i]

/* importers */
byte buf[2];				/* attached to this one */
mtype:kind kind[2] = DETACHED;
bool mapped[2];
bool filled[2];				/* IOMMUFD: there is a struct iopt_dmabuf_map */
bool invalidated[2];			/* unmap_work is due; iopt_dmabuf.revoked */
mtype:fence fence[2] = IDLE;		/* in the reservation object of buf */

/* for the properties only */
bool taken, gone, waits[2];
bool revoking, unbinding, closing, export_ended;

ltl revoke_ends { []<> !revoking && []<> !unbinding && []<> !closing }

/* A lock is the queue of its waiters. The first one has it. */
inline lock(l)		{ l!_pid; l?[eval(_pid)] }
inline unlock(l)	{ l?eval(_pid) }
#define resv_free(b)		empty(resv[b])

#define usable(b)		(state[b] == LIVE)
#define is_live(b)		(usable(b) && !dying[b])
#define attached(i, b)		(kind[i] != DETACHED && buf[i] == b)
#define fence_pending(b)	((buf[0] == b && fence[0] != IDLE) || \
				 (buf[1] == b && fence[1] != IDLE))
#define can_access(i)		(mapped[i] || fence[i] == DMA)

/*
 * The exporter as importers see it
 */

inline vfio_pci_dma_buf_attach(i, b)
{
	atomic { fd[b] && resv_free(b) && usable(b) -> buf[i] = b }
}

inline vfio_pci_dma_buf_pin(b)
{
	resv_free(b) && (usable(b) || bug(NO_PIN_CHECK)) -> assert(!taken)
}

inline vfio_pci_dma_buf_map(i, b)
{
	assert(!taken);
	mapped[i] = true;
	nr_mapped[b]++
}

inline vfio_pci_dma_buf_unmap(i, b)
{
	assert(nr_mapped[b] > 0);
	mapped[i] = false;
	nr_mapped[b]--
}

/*
 * Invalidate. Importers unmap at once or later, and may end their DMA before or
 * after that.
 */

inline iopt_dmabuf_invalidate(i, b)
{
	invalidated[i] = true;
	mapped[i] = false;
	if
	:: (is_live(b) && !bug(NO_RESTORE)) || bug(RESTORE_UNASKED) ->
		invalidated[i] = false;	/* dmabuf_restore() */
		mapped[i] = filled[i] || bug(RESTORE_UNFILLED)
	:: else
	fi
}

inline dbti_invalidate(i, b)
{
	if
	:: (mapped[i] && !invalidated[i]) || bug(UNMAP_TWICE) ->
		if :: vfio_pci_dma_buf_unmap(i, b) :: invalidated[i] = true fi
	:: else
	fi
}

inline invalidate_mappings(i, b)
{
	if
	:: attached(i, b) && kind[i] != NOT_REVOCABLE ->
		waits[i] = !usable(b) && (waits[i] || mapped[i]);
		if
		:: kind[i] == IOMMUFD -> iopt_dmabuf_invalidate(i, b)
		:: kind[i] == DYNAMIC -> dbti_invalidate(i, b)
		fi
	:: else
	fi
}

inline dma_buf_invalidate_mappings(b)
{
	invalidate_mappings(0, b);
	invalidate_mappings(1, b)
}

/*
 * Revoke and restore
 */

inline dma_buf_get_fences(b)
{
	snapshot(b, 0) = buf[0] == b && fence[0] != IDLE;
	snapshot(b, 1) = buf[1] == b && fence[1] != IDLE
}

inline dma_buf_put_fences(b)
{
	snapshot(b, 0) = false;
	snapshot(b, 1) = false
}

inline dma_buf_set_state(b, new)
{
	dying[b] = dying[b] || new == DEAD;
	lock(resv[b]);
	if
	:: state[b] == DEAD && !bug(RESTORE_AFTER_DEAD)
	:: state[b] == new
	:: state[b] == REVOKED && new == DEAD -> state[b] = DEAD
	:: else ->
		state[b] = new;
		if
		:: new != LIVE && (bug(NO_INVALIDATE) || bug(INVALIDATE_FIRST))
		:: new == LIVE && bug(NO_REINVALIDATE)
		:: else -> dma_buf_invalidate_mappings(b)
		fi;
		if
		:: new == LIVE -> dma_buf_put_fences(b)
		:: else -> dma_buf_get_fences(b)
		fi
	fi;
	assert(!usable(b) || !((attached(0, b) && waits[0]) ||
			       (attached(1, b) && waits[1])));
	assert(!is_live(b) || !((attached(0, b) && filled[0] && !mapped[0]) ||
				(attached(1, b) && filled[1] && !mapped[1])));
	assert(!gone || !fd[b] || state[b] == DEAD);
	unlock(resv[b])
}

inline listed_set_state(b, new)
{
	if
	:: atomic { bug(INVALIDATE_FIRST) && listed[b] ->
		lock(resv[b]); dma_buf_invalidate_mappings(b); unlock(resv[b])
	   }
	:: else
	fi;
	atomic { if :: listed[b] -> dma_buf_set_state(b, new) :: else fi }
}

inline dma_bufs_set_state(new)
{
	listed_set_state(0, new);
	listed_set_state(1, new)
}

inline dma_buf_wait_fences(b)
{
	!snapshot(b, 0) && !snapshot(b, 1);
	!bug(FENCES_ADDED) || !fence_pending(b)
}

inline dma_buf_wait_unmaps(b)
{
	if
	:: bug(WAIT_UNDER_RESV) ->
		lock(resv[b]);
		nr_mapped[b] == 0;
		unlock(resv[b])
	:: else -> nr_mapped[b] == 0 || bug(NO_UNMAP_WAIT)
	fi
}

inline listed_drain(b)
{
	atomic {
		if
		:: listed[b] && !(state[b] == DEAD && bug(DEAD_NOT_DRAINED)) ->
			if
			:: !bug(NO_FENCE_WAIT) -> dma_buf_wait_fences(b)
			:: else
			fi;
			dma_buf_wait_unmaps(b)
		:: else
		fi
	}
}

inline dma_bufs_drain()
{
	listed_drain(0);
	listed_drain(1)
}

inline vfio_pci_dma_buf_revoke_begin()
{
	dma_bufs_set_state(REVOKED);
	taken = true
}

inline vfio_pci_dma_buf_revoke_wait()	{ dma_bufs_drain() }

inline vfio_pci_dma_buf_restore()
{
	if
	:: atomic { bar_answers || bug(EARLY_RESTORE) -> taken = gone }
		dma_bufs_set_state(LIVE)
	:: else
	fi
}

inline vfio_pci_dma_buf_unbind()
{
	dma_bufs_stopped = true;
	if :: !bug(UNBIND_NOT_REVOKED) -> dma_bufs_set_state(DEAD) :: else fi;
	atomic { gone = true; taken = true }
	dma_bufs_drain()
}

inline vfio_pci_dma_buf_close()
{
	dma_bufs_set_state(DEAD);
	atomic { gone = true; taken = true }
	if :: !bug(CLOSE_NOT_DRAINED) -> dma_bufs_drain() :: else fi;
	atomic { listed[0] = false; listed[1] = false }
}

/*
 * Who calls that
 */

proctype memory_lock_section()
{
	do
	:: lock(memory_lock);
		if
		:: revoking = true;
			bar_answers = bar_answers && !bug(LATE_REVOKE);
			vfio_pci_dma_buf_revoke_begin();
			vfio_pci_dma_buf_revoke_wait();
			atomic { revoking = false; bar_answers = false }
		:: skip
		fi;
		if :: bar_answers = true :: skip fi;
		vfio_pci_dma_buf_restore();
		unlock(memory_lock)
	:: break
	od
}

proctype export()
{
	if :: !bug(EXPORT_UNLOCKED) -> lock(memory_lock) :: else fi;
	if :: atomic { bar_answers -> dma_buf_set_state(1, LIVE) } :: else fi;
	if
	:: atomic { !dma_bufs_stopped || bug(EXPORT_AFTER_UNBIND) ->
		listed[1] = true;
		fd[1] = true
	   }
	:: else
	fi;
	if :: !bug(EXPORT_UNLOCKED) -> unlock(memory_lock) :: else fi;
	export_ended = true
}

proctype unbind()
{
	unbinding = true;
	vfio_pci_dma_buf_unbind();
	unbinding = false
}

proctype close()
{
	export_ended;			/* an ioctl holds the file */
	closing = true;
	vfio_pci_dma_buf_close();
	atomic { closing = false; bar_answers = false }
	assert(nr_mapped[0] == 0 && nr_mapped[1] == 0)
}

/*
 * Importers
 */

inline dynamic_importer(i, b)
{
	do
	:: atomic { !mapped[i] && !waits[i] && fence[i] == IDLE && resv_free(b) ->
		if
		:: usable(b) || bug(NO_MAP_CHECK) -> vfio_pci_dma_buf_map(i, b)
		:: else -> waits[i] = true
		fi
	   }
	:: bug(CHECK_BEFORE_LOCK) && !mapped[i] && fence[i] == IDLE && usable(b) ->
	   atomic { resv_free(b) -> vfio_pci_dma_buf_map(i, b) }
	:: atomic { mapped[i] && !invalidated[i] && fence[i] == IDLE && resv_free(b) ->
		fence[i] = DMA
	   }
	:: atomic { mapped[i] && !invalidated[i] && fence[i] != DMA && resv_free(b) ->
		vfio_pci_dma_buf_unmap(i, b)
	   }
	:: atomic { fence[i] == IDLE && resv_free(b) -> fence[i] = SYNC_FILE }
	:: !mapped[i] && fence[i] == IDLE -> break
	od
}

/* iopt_pages.mutex is the innermost lock, and what is done under it one step. */
inline iommufd(i, b)
{
	if
	:: atomic {			/* dmabuf_attach_and_pin() */
		vfio_pci_dma_buf_pin(b);
		invalidated[i] = false
	   }
	   do
	   :: atomic { !filled[i] ->	/* iopt_dmabuf_fill_domain() */
		filled[i] = true;
		mapped[i] = (!invalidated[i] && is_live(b)) || bug(NO_REVOKED_CHECK)
	      }
	   :: atomic { filled[i] ->	/* iopt_dmabuf_unfill_domain() */
		filled[i] = false;
		mapped[i] = false
	      }
	   :: !filled[i] -> break
	   od
	:: resv_free(b) && !usable(b)
	fi
}

proctype importer(byte i)
{
end:	do
	:: if :: vfio_pci_dma_buf_attach(i, 0) :: vfio_pci_dma_buf_attach(i, 1) fi;
	   /* Not on the list yet. */
	   if
	   :: atomic { resv_free(buf[i]) -> kind[i] = DYNAMIC }
		dynamic_importer(i, buf[i])
	   :: atomic { resv_free(buf[i]) -> kind[i] = IOMMUFD; invalidated[i] = true }
		iommufd(i, buf[i])
	   :: atomic { bug(NON_REVOCABLE_ALLOWED) && resv_free(buf[i]) ->
		kind[i] = NOT_REVOCABLE
	      }
		dynamic_importer(i, buf[i])
	   fi;
	   atomic { resv_free(buf[i]) ->	/* dma_buf_detach() */
		assert(filled[i] || !mapped[i]);
		kind[i] = DETACHED;
		invalidated[i] = false;
		waits[i] = false;
		buf[i] = 0
	   }
	od
}

proctype unmap_work(byte i)
{
end:	do
	:: atomic { kind[i] == DYNAMIC && mapped[i] && invalidated[i] && resv_free(buf[i]) ->
		vfio_pci_dma_buf_unmap(i, buf[i]);
		invalidated[i] = false
	   }
	od
}

proctype engine(byte i)
{
end:	do
	:: atomic { can_access(i) && !bar_answers -> assert(bar_answers) }
	:: atomic { fence[i] != IDLE ->
		fence[i] = IDLE;
		snapshot(0, i) = false;
		snapshot(1, i) = false
	   }
	od
}

#define exported(b)	state[b] = LIVE; listed[b] = true; fd[b] = true

init {
	atomic {
		exported(0);
#ifdef LIVENESS
		exported(1);
		export_ended = true;
#else
		run export();
#endif
#if defined(ALL_AT_ONCE) && !defined(LIVENESS)
		run memory_lock_section(); run unbind(); run close();
#else
		if
		:: run memory_lock_section(); run unbind()
		:: run memory_lock_section(); run close()
		:: run unbind(); run close()
		fi;
#endif
		run importer(0); run unmap_work(0); run engine(0);
		run importer(1); run unmap_work(1); run engine(1)
	}
}
