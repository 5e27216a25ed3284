//! BLAKE3 of many small messages at once, each in a lane of its own.
//!
//! Duty: the same hashes as the `blake3` crate, which hashes one message at a time and so fills its lanes
//! only from 1 KiB a lane upwards. Here a lane takes the next piece of work when its own is finished, so
//! mixed lengths keep all lanes busy. A piece is a chunk (up to 1 KiB) or a parent of two; the parents of
//! all messages of a batch follow level by level. What fills the lanes by itself is left to the crate.
//! Memory: 32 bytes a chunk of messages longer than one, and a few words a piece.
//! Source: the BLAKE3 specification, section 2.

use crate::Level;
use crate::isa::Lanes;
use crate::level::Isa;

/// A BLAKE3 hash.
pub type Hash = [u8; 32];

const BLOCK_BYTES: usize = 64;
type Block = [u8; BLOCK_BYTES];
const CHUNK_BYTES: usize = 1024;

/// Messages that are under way at once: enough that lanes without work at the end do not count.
const GROUP: usize = 1024;

const CHUNK_START: u32 = 1;
const CHUNK_END: u32 = 2;
const PARENT: u32 = 4;
const ROOT: u32 = 8;

const IV: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The order of the message's words in each round: the specification's permutation, applied again and again.
const SCHEDULE: [[usize; 16]; 7] = {
    const PERMUTATION: [usize; 16] = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8];
    let mut rounds = [[0; 16]; 7];
    let mut word = 0;
    while word < 16 {
        rounds[0][word] = word;
        word += 1;
    }
    let mut round = 1;
    while round < 7 {
        let mut word = 0;
        while word < 16 {
            rounds[round][word] = rounds[round - 1][PERMUTATION[word]];
            word += 1;
        }
        round += 1;
    }
    rounds
};

/// Hashes each message into the hash of the same number.
///
/// # Panics
/// When there are not as many hashes as messages.
pub fn hash_many(level: Level, messages: &[&[u8]], hashes: &mut [Hash]) {
    assert_eq!(messages.len(), hashes.len(), "a hash for every message");
    match level.0 {
        Isa::Portable => one_by_one(messages, hashes),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(lanes) => in_groups(lanes, messages, hashes),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(lanes) => in_groups(lanes, messages, hashes),
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Isa::Neon(lanes) => in_groups(lanes, messages, hashes),
    }
}

fn one_by_one(messages: &[&[u8]], hashes: &mut [Hash]) {
    for (message, hash) in messages.iter().zip(hashes) {
        *hash = *blake3::hash(message).as_bytes();
    }
}

/// A chunk or a parent to be hashed in a lane.
pub(crate) struct Job<'a> {
    /// All blocks but the last.
    blocks: &'a [Block],
    /// The last block, and how many of its bytes count; the others are zeros.
    tail: &'a Block,
    tail_bytes: u32,
    counter: u32,
    /// Flags of the first block alone.
    first: u32,
    /// Flags of the last block alone.
    last: u32,
    to: &'a mut Hash,
}

impl<'a> Job<'a> {
    /// A chunk of a message; `root` where it is the only one. A short last block is padded in a spare one.
    #[inline(always)]
    fn chunk(
        bytes: &'a [u8],
        number: usize,
        root: u32,
        spare: &mut impl Iterator<Item = &'a mut Block>,
        to: &'a mut Hash,
    ) -> Job<'a> {
        let (mut blocks, end) = bytes.as_chunks();
        let mut tail_bytes = end.len();
        let tail = match blocks.split_last() {
            Some((last, others)) if end.is_empty() => {
                (blocks, tail_bytes) = (others, BLOCK_BYTES);
                last
            }
            _ => {
                let padded = spare.next().expect("a spare block for every message");
                padded[..end.len()].copy_from_slice(end);
                padded
            }
        };
        // a message has fewer chunks than there are lanes
        let (counter, tail_bytes) = (number as u32, tail_bytes as u32);
        Job { blocks, tail, tail_bytes, counter, first: CHUNK_START, last: CHUNK_END | root, to }
    }

    /// A parent of two nodes; `root` where it is the last.
    fn parent(children: &'a [Hash; 2], root: u32, to: &'a mut Hash) -> Job<'a> {
        let tail = children.as_flattened().as_array().expect("two hashes are a block");
        let tail_bytes = BLOCK_BYTES as u32;
        Job { blocks: &[], tail, tail_bytes, counter: 0, first: 0, last: PARENT | root, to }
    }
}

/// The nodes of one level of one message's tree, not hashed into one yet.
struct Tree<'a> {
    nodes: usize,
    to: &'a mut Hash,
}

fn in_groups<const N: usize, L: Lanes<N>>(lanes: L, messages: &[&[u8]], hashes: &mut [Hash]) {
    for (messages, hashes) in messages.chunks(GROUP).zip(hashes.chunks_mut(GROUP)) {
        // measured: with three quarters of the lanes empty, the crate is as fast
        if messages.len() > N / 4 {
            side_by_side(lanes, messages, hashes);
        } else {
            one_by_one(messages, hashes);
        }
    }
}

fn side_by_side<const N: usize, L: Lanes<N>>(lanes: L, messages: &[&[u8]], hashes: &mut [Hash]) {
    let is_long = |message: &&&[u8]| (CHUNK_BYTES + 1..N * CHUNK_BYTES).contains(&message.len());
    let chunks = messages.iter().filter(is_long).map(|message| message.len().div_ceil(CHUNK_BYTES)).sum();
    let mut nodes = vec![Hash::default(); chunks];
    let mut spare = vec![[0; BLOCK_BYTES]; messages.len()];
    let (mut free, mut spare) = (nodes.iter_mut(), spare.iter_mut());
    let mut trees = Vec::new();
    let mut jobs = Vec::with_capacity(messages.len() + chunks);
    for (message, to) in messages.iter().zip(hashes) {
        if message.len() <= CHUNK_BYTES {
            jobs.push(Job::chunk(message, 0, ROOT, &mut spare, to));
        } else if message.len() < N * CHUNK_BYTES {
            let before = jobs.len();
            for (number, (chunk, node)) in message.chunks(CHUNK_BYTES).zip(&mut free).enumerate() {
                jobs.push(Job::chunk(chunk, number, 0, &mut spare, node));
            }
            trees.push(Tree { nodes: jobs.len() - before, to });
        } else {
            *to = *blake3::hash(message).as_bytes();
        }
    }
    lanes.hash_jobs(&mut jobs);
    while !trees.is_empty() {
        (nodes, trees) = join_level(lanes, &nodes, trees);
    }
}

/// Hashes the nodes of each tree pair by pair; an odd last one goes up as it is.
fn join_level<'a, const N: usize, L: Lanes<N>>(
    lanes: L,
    nodes: &[Hash],
    trees: Vec<Tree<'a>>,
) -> (Vec<Hash>, Vec<Tree<'a>>) {
    let mut above = vec![Hash::default(); trees.iter().map(|tree| tree.nodes.div_ceil(2)).sum()];
    let mut free = above.iter_mut();
    let mut jobs = Vec::with_capacity(nodes.len() / 2);
    let mut left = Vec::new();
    let mut rest = nodes;
    for tree in trees {
        let (own, others) = rest.split_at(tree.nodes);
        rest = others;
        let (pairs, odd) = own.as_chunks::<2>();
        if let ([pair], []) = (pairs, odd) {
            jobs.push(Job::parent(pair, ROOT, tree.to));
            continue;
        }
        for (pair, to) in pairs.iter().zip(&mut free) {
            jobs.push(Job::parent(pair, 0, to));
        }
        for (node, to) in odd.iter().zip(&mut free) {
            *to = *node;
        }
        left.push(Tree { nodes: tree.nodes.div_ceil(2), to: tree.to });
    }
    lanes.hash_jobs(&mut jobs);
    (above, left)
}

/// What a lane hashes that never had a job.
const ZEROS: &Block = &[0; BLOCK_BYTES];

/// One block for each lane. A lane without a job gets one it had before.
struct Step<'j, const N: usize> {
    blocks: [&'j Block; N],
    counters: [u32; N],
    lengths: [u32; N],
    flags: [u32; N],
    /// All ones where a job starts.
    starts: [u32; N],
    /// A bit for each lane in which a job ends, and where its hash goes.
    ends: u32,
    to: [Option<&'j mut Hash>; N],
    /// No lane has a job.
    is_idle: bool,
}

/// The jobs that wait, and what each lane has left of its own.
struct Queue<'j, 'a, const N: usize> {
    waiting: std::slice::IterMut<'j, Job<'a>>,
    jobs: [Option<&'j mut Job<'a>>; N],
    /// Lanes that have a job.
    busy: usize,
    blocks: [&'j [Block]; N],
    counters: [u32; N],
    /// Flags of the next block, and all ones where it is the first.
    flags: [u32; N],
    starts: [u32; N],
}

/// Runs the jobs, `N` at a time. Compiled once for each instruction set, inside its `hash_jobs`.
///
/// The next step is prepared between the rounds of the present one: the processor then does both at once,
/// and vectors are not loaded right behind the single words they consist of, which would stall it.
#[inline(always)]
pub(crate) fn run<const N: usize, L: Lanes<N>>(lanes: L, jobs: &mut [Job<'_>]) {
    let mut queue = Queue::<N>::of(jobs.iter_mut());
    let [mut one, mut other] = [const { Step::idle() }; 2];
    let (mut this, mut next) = (&mut one, &mut other);
    this.begin(&mut queue);
    (0..N).for_each(|lane| this.prepare(&mut queue, lane));
    let mut chain = [lanes.splat(0); 8];
    let mut ended = [[0; N]; 8];
    while !this.is_idle {
        next.begin(&mut queue);
        compress(lanes, &mut chain, this, next, &mut queue);
        if this.ends != 0 {
            for (words, chain) in ended.iter_mut().zip(chain) {
                lanes.store(chain, words);
            }
            this.collect(&ended);
        }
        std::mem::swap(&mut this, &mut next);
    }
}

impl<'j, 'a, const N: usize> Queue<'j, 'a, N> {
    #[inline(always)]
    fn of(waiting: std::slice::IterMut<'j, Job<'a>>) -> Self {
        let mut queue = Queue {
            waiting,
            jobs: [const { None }; N],
            busy: 0,
            blocks: [&[]; N],
            counters: [0; N],
            flags: [0; N],
            starts: [0; N],
        };
        (0..N).for_each(|lane| queue.start(lane));
        queue
    }

    /// Gives a lane the next job, if there is one.
    #[inline(always)]
    fn start(&mut self, lane: usize) {
        if let Some(job) = self.waiting.next() {
            self.busy += 1;
            self.blocks[lane] = job.blocks;
            self.counters[lane] = job.counter;
            self.flags[lane] = job.first;
            self.starts[lane] = u32::MAX;
            self.jobs[lane] = Some(job);
        }
    }
}

impl<'j, const N: usize> Step<'j, N> {
    const fn idle() -> Self {
        Step {
            blocks: [ZEROS; N],
            counters: [0; N],
            lengths: [0; N],
            flags: [0; N],
            starts: [0; N],
            ends: 0,
            to: [const { None }; N],
            is_idle: true,
        }
    }

    /// Begins a step after that of which `prepare` was called for all lanes.
    #[inline(always)]
    fn begin(&mut self, queue: &mut Queue<'j, '_, N>) {
        self.is_idle = queue.busy == 0;
        self.counters = queue.counters;
        self.starts = std::mem::replace(&mut queue.starts, [0; N]);
        self.flags = std::mem::replace(&mut queue.flags, [0; N]);
        self.lengths = [BLOCK_BYTES as u32; N];
    }

    /// Takes the next block of a lane; a lane whose job ends goes on with the next one.
    #[inline(always)]
    fn prepare(&mut self, queue: &mut Queue<'j, '_, N>, lane: usize) {
        if let [block, rest @ ..] = queue.blocks[lane] {
            self.blocks[lane] = block;
            queue.blocks[lane] = rest;
        } else if let Some(job) = queue.jobs[lane].take() {
            self.blocks[lane] = job.tail;
            self.lengths[lane] = job.tail_bytes;
            self.flags[lane] |= job.last;
            self.to[lane] = Some(job.to);
            self.ends |= 1 << lane;
            queue.busy -= 1;
            queue.start(lane);
        }
    }

    /// Prepares the lanes whose turn is after this round.
    #[inline(always)]
    fn prepare_share<const ROUND: usize>(&mut self, queue: &mut Queue<'j, '_, N>) {
        let mut lane = ROUND;
        while lane < N {
            self.prepare(queue, lane);
            lane += 7;
        }
    }

    /// Hands out the hashes of the jobs that have ended.
    #[inline(always)]
    fn collect(&mut self, chain: &[[u32; N]; 8]) {
        while self.ends != 0 {
            let lane = self.ends.trailing_zeros() as usize % N;
            self.ends &= self.ends - 1;
            if let Some(to) = self.to[lane].take() {
                for (bytes, words) in to.as_chunks_mut().0.iter_mut().zip(chain) {
                    *bytes = words[lane].to_le_bytes();
                }
            }
        }
    }
}

/// One step: a block of each lane into its chaining value. Free of closures: they would not be compiled for
/// the instructions of the function they are in.
#[inline(always)]
fn compress<'j, const N: usize, L: Lanes<N>>(
    lanes: L,
    chain: &mut [L::Words; 8],
    step: &Step<'j, N>,
    next: &mut Step<'j, N>,
    queue: &mut Queue<'j, '_, N>,
) {
    let message = lanes.transposed(&step.blocks);
    let starts = lanes.load(&step.starts);
    let mut state = [lanes.splat(0); 16];
    for (word, old) in chain.iter().enumerate() {
        state[word] = lanes.select(starts, lanes.splat(IV[word]), *old);
    }
    for word in 0..4 {
        state[8 + word] = lanes.splat(IV[word]);
    }
    // word 13, the upper half of the counter, stays zero: a message is shorter than `N` chunks
    state[12] = lanes.load(&step.counters);
    state[14] = lanes.load(&step.lengths);
    state[15] = lanes.load(&step.flags);
    // written out, not looped over: every index is then known to the compiler, and all state in registers
    round::<0, N, L>(lanes, &mut state, &message);
    next.prepare_share::<0>(queue);
    round::<1, N, L>(lanes, &mut state, &message);
    next.prepare_share::<1>(queue);
    round::<2, N, L>(lanes, &mut state, &message);
    next.prepare_share::<2>(queue);
    round::<3, N, L>(lanes, &mut state, &message);
    next.prepare_share::<3>(queue);
    round::<4, N, L>(lanes, &mut state, &message);
    next.prepare_share::<4>(queue);
    round::<5, N, L>(lanes, &mut state, &message);
    next.prepare_share::<5>(queue);
    round::<6, N, L>(lanes, &mut state, &message);
    next.prepare_share::<6>(queue);
    for (word, chain) in chain.iter_mut().enumerate() {
        *chain = lanes.xor(state[word], state[word + 8]);
    }
}

#[inline(always)]
fn round<const ROUND: usize, const N: usize, L: Lanes<N>>(
    lanes: L,
    state: &mut [L::Words; 16],
    message: &[L::Words; 16],
) {
    let schedule = const { &SCHEDULE[ROUND] };
    mix(lanes, state, [0, 4, 8, 12], [message[schedule[0]], message[schedule[1]]]);
    mix(lanes, state, [1, 5, 9, 13], [message[schedule[2]], message[schedule[3]]]);
    mix(lanes, state, [2, 6, 10, 14], [message[schedule[4]], message[schedule[5]]]);
    mix(lanes, state, [3, 7, 11, 15], [message[schedule[6]], message[schedule[7]]]);
    mix(lanes, state, [0, 5, 10, 15], [message[schedule[8]], message[schedule[9]]]);
    mix(lanes, state, [1, 6, 11, 12], [message[schedule[10]], message[schedule[11]]]);
    mix(lanes, state, [2, 7, 8, 13], [message[schedule[12]], message[schedule[13]]]);
    mix(lanes, state, [3, 4, 9, 14], [message[schedule[14]], message[schedule[15]]]);
}

/// The specification's quarter round, on a column or a diagonal of the state.
#[inline(always)]
fn mix<const N: usize, L: Lanes<N>>(
    lanes: L,
    state: &mut [L::Words; 16],
    [ia, ib, ic, id]: [usize; 4],
    [x, y]: [L::Words; 2],
) {
    let [mut a, mut b, mut c, mut d] = [state[ia], state[ib], state[ic], state[id]];
    a = lanes.add(lanes.add(a, b), x);
    d = lanes.rotate_16(lanes.xor(d, a));
    c = lanes.add(c, d);
    b = lanes.rotate_12(lanes.xor(b, c));
    a = lanes.add(lanes.add(a, b), y);
    d = lanes.rotate_8(lanes.xor(d, a));
    c = lanes.add(c, d);
    b = lanes.rotate_7(lanes.xor(b, c));
    [state[ia], state[ib], state[ic], state[id]] = [a, b, c, d];
}
