# Batches of messages, verified together: a part of ``_verify.pyx``.

cdef enum:
    SHARE = 16  # messages of one algorithm that a thread takes at a time: two passes of its lanes
    WINDOW = 64  # shares on their way at a time: what bounds the memory of a batch
    ROOM = WINDOW + 2 * KINDS  # for what one look at the messages may add: no kind can fill more than two shares
    LEFT = 4  # shares that are left to each helper while results are made, which for a window takes about as long

cdef enum _Verdict:
    BAD = 0
    GOOD = 1
    UNDECIDED = 2
    NO_MEMORY = 3

cdef struct _Job:
    const unsigned char* data
    size_t end
    size_t offset
    size_t size
    const void* lanes  # the key for them; NULL: this is for OpenSSL alone
    bint loaded  # whether OpenSSL can be asked; only ever set with the GIL
    unsigned char digest[SHA256_DIGEST_LENGTH]
    int verdict


cdef void _hash_and_accept(const _Lanes* lanes, _Job* jobs, int count) noexcept nogil:
    """Fill in the digests and accept what the lanes accept; the rest stays UNDECIDED."""
    cdef lane_job group[LANES]
    cdef _Job* members[LANES]
    cdef _Job* job
    cdef int index, lane, filled = 0
    cdef unsigned accepted
    cdef EVP_MD_CTX* context = EVP_MD_CTX_new()
    for index in range(count):
        job = &jobs[index]
        if job.lanes != NULL:
            lane_prefetch(job.lanes, lanes.key_size)  # a large fleet's is in no cache, and the hash gives the memory time
        job.verdict = UNDECIDED if _sha256(
            context,
            job.digest,
            job.data,
            job.offset - 2,
            job.data + job.offset + job.size,
            job.end - job.offset - job.size,
        ) else NO_MEMORY
    EVP_MD_CTX_free(context)
    for index in range(count + 1):
        if index < count:
            job = &jobs[index]
            if job.lanes == NULL or job.verdict != UNDECIDED:
                continue
            members[filled] = job
            group[filled].key = job.lanes
            group[filled].signature = job.data + job.offset
            group[filled].size = job.size
            group[filled].digest = job.digest
            filled += lanes.fits(&group[filled])
        # A whole pass for a few messages takes longer than OpenSSL, if that is ready for them.
        if filled == LANES or (
            index == count and (filled >= lanes.least or (filled > 0 and not members[0].loaded))
        ):
            for lane in range(filled, LANES):
                group[lane] = group[0]
            accepted = lanes.accept(group)
            for lane in range(filled):
                if accepted >> lane & 1:
                    members[lane].verdict = GOOD
            filled = 0


@cython.final
@cython.internal
cdef class _Share:
    """Some messages of a batch with keys of one algorithm, which one thread at a time works on."""

    cdef list frames
    cdef list verifiers
    cdef int algorithm
    cdef int count
    cdef bint hashed
    cdef bint done  # guarded by the queue
    cdef Py_ssize_t places[SHARE]
    cdef void* borrowed[SHARE]  # the verifiers, for work without the GIL
    cdef _Job jobs[SHARE]

    def __cinit__(self, int algorithm):
        self.algorithm = algorithm
        self.frames = []
        self.verifiers = []

    def __dealloc__(self):
        cdef int index
        for index in range(self.count):
            (<_Verifier>self.borrowed[index]).users -= 1

    cdef int add(self, Py_ssize_t place, Frame frame, _Verifier verifier, bint alone) except -1:
        cdef _Job* job = &self.jobs[self.count]
        # A single message does without lanes; but a key of the RSA kernel has a context only as long as there is room.
        cdef bint on = (self.algorithm == RSA or not alone) and _is_on(self.algorithm)
        if not on or (alone and len(_loaded) < MAX_LOADED):
            verifier.load()
        verifier.users += 1
        job.data = frame.data()
        job.end = PyBytes_GET_SIZE(frame._wire)
        job.offset = 22 + frame._token_size
        job.size = frame._signature_size
        job.lanes = verifier.lanes if on and verifier.prepare_lanes() else NULL
        job.loaded = verifier.key != NULL
        self.frames.append(frame)
        self.verifiers.append(verifier)
        self.places[self.count] = place
        self.borrowed[self.count] = <void*>verifier
        self.count += 1
        return 0

    cdef void work(self) noexcept nogil:
        cdef _Job* job
        cdef int index
        if not self.hashed:
            _hash_and_accept(&_LANES[self.algorithm], self.jobs, self.count)
            self.hashed = True
        for index in range(self.count):
            job = &self.jobs[index]
            if job.verdict == UNDECIDED and job.loaded:
                job.verdict = (<_Verifier>self.borrowed[index]).decide(job.data + job.offset, job.size, job.digest)

    cdef bint finish(self, list results) except -1:
        """Put the results where they belong; return False if there is more work to be done before."""
        cdef bint decided = True
        cdef int index
        for index in range(self.count):
            if self.jobs[index].verdict == NO_MEMORY:
                raise MemoryError
            if self.jobs[index].verdict == UNDECIDED:
                (<_Verifier>self.verifiers[index]).load()
                self.jobs[index].loaded = True
                decided = False
        if decided:
            for index in range(self.count):
                frame = <Frame>self.frames[index]
                results[self.places[index]] = frame.record() if self.jobs[index].verdict == GOOD else frame.refusal()
        return decided


cdef struct _Queue:
    PyThread_type_lock lock
    void* shares[ROOM]  # a ring; _Batch.open keeps them alive
    int first
    int waiting


cdef void _work(_Queue* queue, int leave) noexcept nogil:
    """Work on shares until no more than ``leave`` are waiting."""
    cdef void* share = NULL
    while True:
        PyThread_acquire_lock(queue.lock, WAIT_LOCK)
        if share != NULL:
            (<_Share>share).done = True
        if queue.waiting <= leave:
            PyThread_release_lock(queue.lock)
            return
        share = queue.shares[queue.first]
        queue.first = (queue.first + 1) % ROOM
        queue.waiting -= 1
        PyThread_release_lock(queue.lock)
        (<_Share>share).work()


cdef struct _Helper:
    _Queue* queue
    PyThread_type_lock busy  # held while the thread lives


cdef void _help(void* argument) noexcept nogil:
    """Be a thread: it never touches a Python object's references, and ends when no share is waiting."""
    cdef _Helper* helper = <_Helper*>argument
    _work(helper.queue, 0)
    OPENSSL_thread_stop()  # here, because a fork after the batch must not find this thread holding OpenSSL's locks
    PyThread_release_lock(helper.busy)


@cython.final
@cython.internal
cdef class _Batch:
    """Messages that are verified together: this thread makes the Python objects, helpers share the rest with it."""

    cdef list results
    cdef list filling  # the share of each algorithm that takes the next message, None if there is none
    cdef list open  # shares that are full and have not finished
    cdef _Queue queue
    cdef _Helper* helpers
    cdef int size  # of helpers
    cdef int process

    def __cinit__(self, list wires not None, threads):
        self.process = getpid()
        self.results = [None] * len(wires)
        self.filling = [None] * KINDS
        self.open = []
        # To start a thread takes as long as two shares.
        cdef Py_ssize_t wanted = min(threads, WINDOW, len(wires) // (2 * SHARE)) - 1
        self.queue.lock = PyThread_allocate_lock()
        if wanted > 0:
            self.helpers = <_Helper*>malloc(wanted * sizeof(_Helper))
        if self.queue.lock == NULL or (wanted > 0 and self.helpers == NULL):
            raise MemoryError
        for _ in range(wanted):
            self.helpers[self.size].queue = &self.queue
            self.helpers[self.size].busy = PyThread_allocate_lock()
            if self.helpers[self.size].busy == NULL:
                raise MemoryError
            self.size += 1

    def __dealloc__(self):
        cdef int index
        for index in range(self.size):
            PyThread_free_lock(self.helpers[index].busy)
        free(self.helpers)
        if self.queue.lock != NULL:
            PyThread_free_lock(self.queue.lock)

    cdef list verify(self, Schema schema, list wires, find, unknown):
        cdef Py_ssize_t place = 0
        cdef bint fresh = True  # whether shares were put into the queue; if not, all that are open get done in this turn
        try:
            while fresh or self.open:
                PyErr_CheckSignals()  # Ctrl-C ends a long batch
                self.check_process()
                fresh = self.finish()
                while place < len(wires) and len(self.open) < WINDOW:
                    place = self.prepare(schema, wires, place, find, unknown)
                    fresh = True
                with nogil:
                    _work(&self.queue, LEFT * self.size if fresh else 0)
                    if not fresh:
                        self.join()
        finally:
            if getpid() == self.process:
                with nogil:
                    PyThread_acquire_lock(self.queue.lock, WAIT_LOCK)
                    self.queue.waiting = 0
                    PyThread_release_lock(self.queue.lock)
                    self.join()
        return self.results

    cdef Py_ssize_t prepare(self, Schema schema, list wires, Py_ssize_t place, find, unknown) except -1:
        """Decode some messages, find their keys and put them into shares; return the place of the next."""
        cdef Py_ssize_t end = min(place + SHARE, len(wires))
        cdef _Share share
        cdef Frame frame
        for place in range(place, end):
            try:
                frame = schema.decode(wires[place])
                key = find(frame.sender_id)
                verifier = getattr(key, "verifier", None)
                if key is None:
                    self.results[place] = unknown(frame.sender_id)
                elif type(verifier) is _Verifier:
                    share = self.share_for((<_Verifier>verifier).algorithm)
                    share.add(place, frame, verifier, len(wires) == 1)
                    if share.count == SHARE:
                        self.close(share)
                else:
                    self.results[place] = frame.verify(key)
            except SrupError as error:
                # Without the frames of this batch, which it would keep alive.
                error.__traceback__ = error.__context__ = None
                self.results[place] = error
        self.check_process()
        if end == len(wires):
            for share in self.filling:
                if share is not None:
                    self.close(share)
        return end

    cdef _Share share_for(self, int algorithm):
        if self.filling[algorithm] is None:
            self.filling[algorithm] = _Share.__new__(_Share, algorithm)
        return self.filling[algorithm]

    cdef int close(self, _Share share) except -1:
        """Let a share be worked on."""
        self.check_process()
        self.filling[share.algorithm] = None
        self.open.append(share)
        self.enqueue(share)
        return 0

    cdef int check_process(self) except -1:
        """Raise RuntimeError in a process that was forked in the middle: there are no helpers in it."""
        if getpid() != self.process:
            raise RuntimeError("the process was forked in the middle of verify_many: verify the batch again")
        return 0

    cdef void enqueue(self, _Share share) noexcept:
        cdef int index
        share.done = False
        PyThread_acquire_lock(self.queue.lock, WAIT_LOCK)
        self.queue.shares[(self.queue.first + self.queue.waiting) % ROOM] = <void*>share
        self.queue.waiting += 1
        PyThread_release_lock(self.queue.lock)
        for index in range(self.size):
            if PyThread_acquire_lock(self.helpers[index].busy, NOWAIT_LOCK):
                if PyThread_start_new_thread(_help, &self.helpers[index]) == PYTHREAD_INVALID_THREAD_ID:
                    PyThread_release_lock(self.helpers[index].busy)  # then it goes without
                return

    cdef bint finish(self) except -1:
        """Make the results of the shares that are done; return whether some went back into the queue."""
        cdef list open = []
        cdef bint again = False, done
        cdef _Share share
        for share in self.open:
            PyThread_acquire_lock(self.queue.lock, WAIT_LOCK)
            done = share.done
            PyThread_release_lock(self.queue.lock)
            if not done:
                open.append(share)
            elif not share.finish(self.results):
                open.append(share)
                self.enqueue(share)
                again = True
        self.open = open
        return again

    cdef void join(self) noexcept nogil:
        """Wait until all helpers have ended."""
        cdef int index
        for index in range(self.size):
            PyThread_acquire_lock(self.helpers[index].busy, WAIT_LOCK)
            PyThread_release_lock(self.helpers[index].busy)


def verify_many(schema, wires, find, threads, unknown):
    cdef list batch = list(wires)
    return (<_Batch>_Batch.__new__(_Batch, batch, threads)).verify(schema, batch, find, unknown)
