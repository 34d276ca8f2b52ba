//! Served jobs that are over and whose orders could come again, and how many of them each
//! consumer has.

use std::collections::BTreeMap;

use minicbor::decode::Error as DecodeError;
use minicbor::encode::{Error as EncodeError, Write};
use minicbor::{Decode, Decoder, Encode, Encoder};
use tirami_core::{DocumentId, JobId, PartyId, Timestamp, Trm};

/// A served job that is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(super) struct Done {
    #[n(0)]
    pub(super) consumer: PartyId,
    #[n(1)]
    pub(super) receipt: Option<DocumentId>,
    #[n(2)]
    pub(super) due: Trm,
    #[n(3)]
    pub(super) until: Timestamp,
}

/// All of them. Only the jobs are written down: the counts follow from them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DoneJobs {
    jobs: BTreeMap<JobId, Done>,
    counts: BTreeMap<PartyId, u32>,
}

impl DoneJobs {
    pub(super) fn get(&self, job: JobId) -> Option<&Done> {
        self.jobs.get(&job)
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// How many are the consumer's.
    pub(super) fn count_of(&self, consumer: PartyId) -> u32 {
        self.counts.get(&consumer).copied().unwrap_or_default()
    }

    /// Gives what was remembered of the job before.
    pub(super) fn insert(&mut self, job: JobId, done: Done) -> Option<Done> {
        let before = self.remove(job);
        let count = self.counts.entry(done.consumer).or_default();
        *count = count.saturating_add(1);
        self.jobs.insert(job, done);
        before
    }

    pub(super) fn remove(&mut self, job: JobId) -> Option<Done> {
        let done = self.jobs.remove(&job)?;
        if let Some(count) = self.counts.get_mut(&done.consumer) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&done.consumer);
            }
        }
        Some(done)
    }

    /// Whether the counts agree with the jobs. O(jobs).
    pub(super) fn is_consistent(&self) -> bool {
        counted(&self.jobs) == self.counts
    }
}

fn counted(jobs: &BTreeMap<JobId, Done>) -> BTreeMap<PartyId, u32> {
    let mut counts = BTreeMap::new();
    for done in jobs.values() {
        let count: &mut u32 = counts.entry(done.consumer).or_default();
        *count = count.saturating_add(1);
    }
    counts
}

impl<C> Encode<C> for DoneJobs {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, c: &mut C) -> Result<(), EncodeError<W::Error>> {
        self.jobs.encode(e, c)
    }
}

impl<'b, C> Decode<'b, C> for DoneJobs {
    fn decode(d: &mut Decoder<'b>, c: &mut C) -> Result<Self, DecodeError> {
        let jobs = BTreeMap::decode(d, c)?;
        Ok(Self { counts: counted(&jobs), jobs })
    }
}
