//! Offsets in a few arenas, for GPUs: a colouring, then a packing of each colour.
//!
//! WebGPU tracks usage per buffer, so a step must not write into an arena that it reads. Tensors that a step reads and
//! writes are *apart*: colours have to differ. A *join* is an output that may take the place of what the step reads
//! last: of one colour, the two are one tensor. Among the colourings one is looked for in which the tallest piles of all
//! arenas add up to as little as possible. A move takes a tensor to another arena, and whatever that collides with the
//! other way (a Kempe chain), so that every state of the search is legal; it is accepted unless the sum grows by more
//! than a threshold that falls to nothing. Then [`pack`](super::pack) gives offsets.

use super::pack::{Packing, Random, columns, pack_with};
use super::{Lifetime, lower_bound};
use std::ops::Range;

/// An arena and an offset for every tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arenas {
    /// Arena and first byte of each tensor.
    pub places: Vec<(usize, usize)>,
    /// Bytes of each arena.
    pub bytes: Vec<usize>,
    /// Whether the second tensor of each join took the place of the first.
    pub joined: Vec<bool>,
}

/// A tensor and the one that may take its place: the first dies at the step at which the second, as large, is born.
pub type Join = (usize, usize);

impl Arenas {
    /// Bytes of all arenas.
    pub fn total(&self) -> usize {
        self.bytes.iter().sum()
    }
}

/// Numbers of arenas that are tried; three are the least for a step that adds one tensor to another.
const COUNTS: Range<usize> = 2..6;
/// Orders, more and more shuffled, that are tried where none of the usual ones leads to a colouring.
const RETRIES: usize = 200;
/// Moves of one search.
const MOVES: usize = 30_000;
/// Growth that is accepted at first: one part in so many. Neither fits every plan.
const WARMTH: [usize; 2] = [50, 25];
/// Elementary operations of one packing.
const WORK: usize = 3_000_000;

/// Places tensors in arenas of at most `limit` bytes so that no two that are alive together share a byte, and no two
/// of a pair in `apart` share an arena; a pair in `joins` is in none in `apart`. None if that was not managed. The same
/// problem always gets the same answer.
pub fn arenas(lifetimes: &[Lifetime], apart: &[(usize, usize)], joins: &[Join], limit: usize) -> Option<Arenas> {
    if lifetimes.is_empty() {
        return Some(Arenas::default());
    }
    let problem = Problem::new(lifetimes, apart, joins, limit);
    let mut found: Vec<Colouring> = Vec::new();
    for count in COUNTS {
        found.extend(problem.search(count));
        if found.iter().any(|colouring| problem.price(colouring) <= problem.enough) {
            break;
        }
    }
    found.sort_by_key(Colouring::total);
    let mut best: Option<Arenas> = None;
    for colouring in found {
        // No packing is below the sum of the peaks.
        if best.as_ref().is_some_and(|best| best.total() <= colouring.total()) {
            break;
        }
        let packed = colouring.pack(lifetimes, joins);
        let better = best.as_ref().is_none_or(|best| packed.total() < best.total());
        if better && packed.bytes.iter().all(|&bytes| bytes <= limit) {
            best = Some(packed);
        }
    }
    best
}

/// The problem, prepared for many moves.
struct Problem<'a> {
    sizes: Vec<usize>,
    /// Columns of each tensor: see [`columns`].
    columns: Vec<Range<usize>>,
    width: usize,
    /// Tensors apart from each.
    apart: Vec<Vec<usize>>,
    joins: &'a [Join],
    /// Joins that each tensor has a part in.
    joins_of: Vec<Vec<usize>>,
    /// Tensors, the largest first.
    order: Vec<usize>,
    /// Other orders to begin with: of tensors as large as each other the earliest first; the earliest first.
    orders: [Vec<usize>; 2],
    limit: usize,
    /// A total that ends the search: three hundredths above the most bytes alive at any step.
    enough: usize,
}

/// An arena for every tensor, and how high each is piled.
#[derive(Clone)]
struct Colouring {
    arena: Vec<usize>,
    /// Bytes of each arena in each column.
    piles: Vec<Vec<usize>>,
    peaks: Vec<usize>,
}

impl<'a> Problem<'a> {
    fn new(lifetimes: &[Lifetime], pairs: &[(usize, usize)], joins: &'a [Join], limit: usize) -> Self {
        let mut apart = vec![Vec::new(); lifetimes.len()];
        // Each once: a chain that held a tensor twice would take it to the other side and back.
        for (a, b) in pairs.iter().flat_map(|&(a, b)| [(a, b), (b, a)]) {
            if !apart[a].contains(&b) {
                apart[a].push(b);
            }
        }
        let mut joins_of = vec![Vec::new(); lifetimes.len()];
        for (number, &(a, b)) in joins.iter().enumerate() {
            joins_of[a].push(number);
            joins_of[b].push(number);
        }
        let (columns, width) = columns(lifetimes);
        let mut order: Vec<usize> = (0..lifetimes.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(lifetimes[i].bytes), i));
        let mut orders = [order.clone(), order.clone()];
        orders[0].sort_by_key(|&i| (std::cmp::Reverse(lifetimes[i].bytes), lifetimes[i].first, i));
        orders[1].sort_by_key(|&i| (lifetimes[i].first, i));
        let sizes = lifetimes.iter().map(|l| l.bytes).collect();
        let enough = lower_bound(lifetimes) / 100 * 103;
        Self { sizes, columns, width, apart, joins, joins_of, order, orders, limit, enough }
    }

    /// The best colourings that were found with `count` arenas from several beginnings: where one leaves the way to few
    /// arenas, another often finds it.
    fn search(&self, count: usize) -> Vec<Colouring> {
        let begun = std::iter::once(&self.order).chain(&self.orders).filter_map(|order| self.greedy(count, order));
        let mut begun: Vec<Colouring> = begun.collect();
        let (mut random, len) = (Random::new(count as u64), self.order.len());
        for retry in 0..RETRIES {
            if !begun.is_empty() {
                break;
            }
            let mut order = self.order.clone();
            (0..=retry).for_each(|_| order.swap(random.below(len), random.below(len)));
            begun.extend(self.greedy(count, &order));
        }
        let mut found = Vec::new();
        for (warmth, begun) in WARMTH.into_iter().flat_map(|warmth| begun.iter().map(move |begun| (warmth, begun))) {
            let improved = self.improve(begun.clone(), count, warmth);
            let done = self.price(&improved) <= self.enough;
            found.push(improved);
            if done {
                break;
            }
        }
        found
    }

    fn improve(&self, mut now: Colouring, count: usize, warmth: usize) -> Colouring {
        let mut best = now.clone();
        let mut random = Random::new(count as u64);
        let start = now.total();
        for step in 0..MOVES {
            // Large tensors matter more.
            let index = random.uniform().powi(2) * self.order.len() as f64;
            let tensor = self.order[(index as usize).min(self.order.len() - 1)];
            let (from, to) = (now.arena[tensor], random.below(count));
            if from == to {
                continue;
            }
            let chain = self.chain(&now, vec![tensor], (from, to));
            let before = self.price(&now);
            self.flip(&mut now, &chain, (from, to));
            let allowed = start / warmth * (MOVES - step) / MOVES;
            if self.price(&now) > before + allowed {
                self.flip(&mut now, &chain, (from, to));
            } else if self.price(&now) < self.price(&best) {
                best.clone_from(&now);
                if self.price(&best) <= self.enough {
                    break;
                }
            }
        }
        best
    }

    /// In this order, each into the arena that grows least, of these into the one that is fullest there.
    fn greedy(&self, count: usize, order: &[usize]) -> Option<Colouring> {
        let none = usize::MAX;
        let mut made = Colouring {
            arena: vec![none; self.sizes.len()],
            piles: vec![vec![0; self.width]; count],
            peaks: vec![0; count],
        };
        for &tensor in order {
            let top = |arena: usize| self.top(&made, tensor, arena);
            let growth = |arena: usize| (top(arena) + self.sizes[tensor]).saturating_sub(made.peaks[arena]);
            let free = (0..count).filter(|&arena| self.is_free(&made, tensor, arena));
            let found = free.min_by_key(|&arena| (growth(arena), std::cmp::Reverse(top(arena))));
            let arena = found.or_else(|| self.make_room(&mut made, tensor))?;
            made.arena[tensor] = arena;
            made.piles[arena][self.columns[tensor].clone()].iter_mut().for_each(|pile| *pile += self.sizes[tensor]);
            for &join in &self.joins_of[tensor] {
                self.share(&mut made, join, true);
            }
            made.peaks[arena] = made.peaks[arena].max(self.top(&made, tensor, arena));
        }
        Some(made)
    }

    fn is_free(&self, colouring: &Colouring, tensor: usize, arena: usize) -> bool {
        self.apart[tensor].iter().all(|&other| colouring.arena[other] != arena)
    }

    /// Takes what keeps a tensor out of an arena to another one, if that can be done for some arena.
    fn make_room(&self, colouring: &mut Colouring, tensor: usize) -> Option<usize> {
        let count = colouring.piles.len();
        for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))).filter(|(a, b)| a != b) {
            let in_the_way = self.apart[tensor].iter().copied().filter(|&other| colouring.arena[other] == from);
            let chain = self.chain(colouring, in_the_way.collect(), (from, to));
            let comes = |other: &usize| colouring.arena[*other] == to && self.apart[tensor].contains(other);
            if !chain.iter().any(comes) {
                self.flip(colouring, &chain, (from, to));
                return Some(from);
            }
        }
        None
    }

    /// Most bytes of an arena in a tensor's columns.
    fn top(&self, colouring: &Colouring, tensor: usize, arena: usize) -> usize {
        colouring.piles[arena][self.columns[tensor].clone()].iter().copied().max().unwrap_or(0)
    }

    /// These tensors and all that has to change sides with them between the two arenas.
    fn chain(&self, colouring: &Colouring, mut chain: Vec<usize>, (from, to): (usize, usize)) -> Vec<usize> {
        let mut next = 0;
        while next < chain.len() {
            for &other in &self.apart[chain[next]] {
                let there = colouring.arena[other];
                if (there == from || there == to) && !chain.contains(&other) {
                    chain.push(other);
                }
            }
            next += 1;
        }
        chain
    }

    /// Counts the tensors of a join once where both are alive, if they share an arena; or takes that back.
    fn share(&self, colouring: &mut Colouring, join: usize, once: bool) {
        let (first, second) = self.joins[join];
        let arena = colouring.arena[first];
        if arena == colouring.arena[second] && arena < colouring.piles.len() {
            let pile = &mut colouring.piles[arena][self.columns[second].start];
            *pile = if once { *pile - self.sizes[second] } else { *pile + self.sizes[second] };
        }
    }

    /// Changes the arena of every tensor of a chain; done twice, it changes nothing.
    fn flip(&self, colouring: &mut Colouring, chain: &[usize], (from, to): (usize, usize)) {
        let mut joins: Vec<usize> = chain.iter().flat_map(|&tensor| self.joins_of[tensor].iter().copied()).collect();
        joins.sort_unstable();
        joins.dedup();
        joins.iter().for_each(|&join| self.share(colouring, join, false));
        for &tensor in chain {
            let old = colouring.arena[tensor];
            let new = if old == from { to } else { from };
            let (columns, bytes) = (self.columns[tensor].clone(), self.sizes[tensor]);
            colouring.piles[old][columns.clone()].iter_mut().for_each(|pile| *pile -= bytes);
            colouring.piles[new][columns].iter_mut().for_each(|pile| *pile += bytes);
            colouring.arena[tensor] = new;
        }
        joins.iter().for_each(|&join| self.share(colouring, join, true));
        for arena in [from, to] {
            colouring.peaks[arena] = colouring.piles[arena].iter().copied().max().unwrap_or(0);
        }
    }

    /// Bytes of all arenas; what is beyond the limit counts several times.
    fn price(&self, colouring: &Colouring) -> usize {
        let beyond: usize = colouring.peaks.iter().map(|&peak| peak.saturating_sub(self.limit)).sum();
        colouring.total() + 4 * beyond
    }
}

impl Colouring {
    fn total(&self) -> usize {
        self.peaks.iter().sum()
    }

    fn pack(&self, lifetimes: &[Lifetime], joins: &[Join]) -> Arenas {
        let joined: Vec<bool> = joins.iter().map(|&(first, second)| self.arena[first] == self.arena[second]).collect();
        // The tensor whose place each takes. Joins come in the order of their steps.
        let mut host: Vec<usize> = (0..lifetimes.len()).collect();
        let mut lives = lifetimes.to_vec();
        for (&(first, second), _) in joins.iter().zip(&joined).filter(|(_, joined)| **joined) {
            host[second] = host[first];
            lives[host[first]].last = lives[second].last;
        }
        let mut made = Arenas { places: vec![(0, 0); lifetimes.len()], bytes: Vec::new(), joined };
        for arena in 0..self.peaks.len() {
            let is_tenant = |&tensor: &usize| self.arena[tensor] == arena && host[tensor] == tensor;
            let tenants: Vec<usize> = (0..lifetimes.len()).filter(is_tenant).collect();
            if tenants.is_empty() {
                continue;
            }
            let alive: Vec<Lifetime> = tenants.iter().map(|&tensor| lives[tensor]).collect();
            let Packing { offsets, total } = pack_with(&alive, WORK);
            tenants.iter().zip(offsets).for_each(|(&tensor, at)| made.places[tensor] = (made.bytes.len(), at));
            made.bytes.push(total);
        }
        made.places = host.iter().map(|&host| made.places[host]).collect();
        made
    }
}
