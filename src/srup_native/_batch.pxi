# Batches of messages, verified together: a part of ``_verify.pyx``.

cdef enum:
    SHARE = 16  # messages that a thread takes at a time: two passes of the kernel
    WINDOW = 64  # shares on their way at a time: what bounds the memory of a batch
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
    const rsa_mb_key* lanes
    bint loaded  # whether OpenSSL can be asked; only ever set with the GIL
    unsigned char digest[SHA256_DIGEST_LENGTH]
    int verdict


cdef void _hash_and_accept(_Job* jobs, int count) noexcept nogil:
    """Fill in the digests and accept what the kernel accepts; the rest stays UNDECIDED."""
    cdef rsa_mb_job group[RSA_MB_LANES]
    cdef _Job* members[RSA_MB_LANES]
    cdef _Job* job
    cdef int index, lane, filled = 0
    cdef unsigned accepted
    cdef EVP_MD_CTX* context = EVP_MD_CTX_new()
    for index in range(count):
        job = &jobs[index]
        if job.lanes != NULL:
            rsa_mb_prefetch(job.lanes)  # in a large fleet it is in no cache, and the hash gives the memory time
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
            if job.lanes == NULL or job.size != RSA_MB_BYTES or job.verdict != UNDECIDED:
                continue
            members[filled] = job
            group[filled].key = job.lanes
            group[filled].signature = job.data + job.offset
            group[filled].digest = job.digest
            filled += 1
        # A whole pass for a single message takes a sixth longer than OpenSSL, if that is ready for it.
        if filled == RSA_MB_LANES or (index == count and (filled > 1 or (filled == 1 and not members[0].loaded))):
            for lane in range(filled, RSA_MB_LANES):
                group[lane] = group[0]
            accepted = rsa_mb_accept(group)
            for lane in range(filled):
                if accepted >> lane & 1:
                    members[lane].verdict = GOOD
            filled = 0


@cython.final
@cython.internal
cdef class _Share:
    """Some messages of a batch, which one thread at a time works on."""

    cdef list frames
    cdef list verifiers
    cdef int count
    cdef bint hashed
    cdef bint done  # guarded by the queue
    cdef Py_ssize_t places[SHARE]
    cdef void* borrowed[SHARE]  # the verifiers, for work without the GIL
    cdef _Job jobs[SHARE]

    def __cinit__(self):
        self.frames = []
        self.verifiers = []

    def __dealloc__(self):
        cdef int index
        for index in range(self.count):
            (<_Verifier>self.borrowed[index]).users -= 1

    cdef int add(self, Py_ssize_t place, Frame frame, _Verifier verifier, bint kernel, bint alone) except -1:
        cdef _Job* job = &self.jobs[self.count]
        if not kernel or (alone and len(_loaded) < MAX_LOADED):
            verifier.load()
        verifier.users += 1
        job.data = frame.data()
        job.end = PyBytes_GET_SIZE(frame._wire)
        job.offset = 22 + frame._token_size
        job.size = frame._signature_size
        job.lanes = verifier.lanes if kernel else NULL
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
            _hash_and_accept(self.jobs, self.count)
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
    void* shares[WINDOW]  # a ring; _Batch.open keeps them alive
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
        queue.first = (queue.first + 1) % WINDOW
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
    cdef list open  # shares that have not finished
    cdef _Queue queue
    cdef _Helper* helpers
    cdef int size  # of helpers
    cdef int process

    def __cinit__(self, list wires not None, threads):
        self.process = getpid()
        self.results = [None] * len(wires)
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
        """Decode a share of messages and find their keys; return the place of the next."""
        cdef Py_ssize_t end = min(place + SHARE, len(wires))
        cdef _Share share = _Share.__new__(_Share)
        cdef Frame frame
        for place in range(place, end):
            try:
                frame = schema.decode(wires[place])
                key = find(frame.sender_id)
                verifier = getattr(key, "verifier", None)
                if key is None:
                    self.results[place] = unknown(frame.sender_id)
                elif type(verifier) is _Verifier:
                    share.add(place, frame, verifier, _kernel, len(wires) == 1)
                else:
                    self.results[place] = frame.verify(key)
            except SrupError as error:
                # Without the frames of this batch, which it would keep alive.
                error.__traceback__ = error.__context__ = None
                self.results[place] = error
        self.check_process()
        if share.count:
            self.open.append(share)
            self.enqueue(share)
        return end

    cdef int check_process(self) except -1:
        """Raise RuntimeError in a process that was forked in the middle: there are no helpers in it."""
        if getpid() != self.process:
            raise RuntimeError("the process was forked in the middle of verify_many: verify the batch again")
        return 0

    cdef void enqueue(self, _Share share) noexcept:
        cdef int index
        share.done = False
        PyThread_acquire_lock(self.queue.lock, WAIT_LOCK)
        self.queue.shares[(self.queue.first + self.queue.waiting) % WINDOW] = <void*>share
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
