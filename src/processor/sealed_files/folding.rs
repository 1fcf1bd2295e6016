//! Files that wait at the same time: their sums are added up and committed in one transaction.
//!
//! A file that fails to be read, or has changed, leaves useless sums. The files before it are then applied one by
//! one, and so are all files if a total might overflow.

use super::{Complete, Start, Step};
use crate::data_dir::segment::SegmentId;
use crate::data_dir::{Found, Place, SegmentFile};
use crate::processor::ProcessError;
use crate::processor::applier::{
    Committed, Folded, Member, can_fold, is_out_of_descriptors, open_sealed,
};

/// Files that are committed together.
pub(super) struct Folding {
    folded: Folded,
    /// Where each of them is.
    places: Vec<Place>,
}

impl Folding {
    pub(super) fn has(&self, id: &SegmentId) -> bool {
        self.folded.has(id)
    }
}

impl Step<'_, '_> {
    /// Applies a large file, with other files if there are any. `is_last`: no further file waits.
    pub(super) fn large(&mut self, file: &Found, is_last: bool) -> Result<(), ProcessError> {
        let segment = match open_sealed(self.disk, &file.id, file.tag, &file.path) {
            // The files that are open are applied and closed first.
            Err(error) if self.folding.is_some() && is_out_of_descriptors(&error) => {
                self.finish_fold()?;
                open_sealed(self.disk, &file.id, file.tag, &file.path)?
            }
            opened => opened?,
        };
        match self.start(&segment)? {
            Start::Skip => Ok(()),
            Start::Applied(row) => self.archive(&[Complete {
                segment,
                place: file.place,
                row,
                now: false,
            }]),
            Start::At { from, size } => {
                let is_alone = self.is_separate
                    || self.folding.is_none() && is_last
                    || size - from > self.run.together_bytes_max();
                if is_alone || !can_fold(&segment, size)? {
                    self.finish_fold()?;
                    return self.alone(segment, file.place, from, size);
                }
                self.fold(segment, file.place, from, size)
            }
        }
    }

    /// Adds the sums of a file.
    pub(super) fn fold(
        &mut self,
        segment: SegmentFile,
        place: Place,
        from: u64,
        size: u64,
    ) -> Result<(), ProcessError> {
        let bytes_max = self.run.together_bytes_max();
        let mut next = Some(segment);
        while let Some(segment) = next.take() {
            let is_full = |folding: &Folding| folding.folded.is_full(size - from, bytes_max);
            if self.folding.as_ref().is_some_and(is_full) {
                self.finish_fold()?;
            }
            let folding = self.folding.get_or_insert_with(|| Folding {
                folded: self.applier.begin_fold(),
                places: Vec::new(),
            });
            match self.applier.fold(&mut folding.folded, segment, from, size) {
                Ok(None) => folding.places.push(place),
                Ok(back) => {
                    next = back;
                    self.finish_fold()?;
                }
                Err(error) => {
                    if let Some(Folding { folded, places }) = self.folding.take() {
                        self.one_by_one(folded.into_members(), places)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Commits and archives the files whose sums were added up.
    pub(super) fn finish_fold(&mut self) -> Result<(), ProcessError> {
        let Some(Folding { folded, places }) = self.folding.take() else {
            return Ok(());
        };
        if folded.is_empty() {
            return Ok(());
        }
        let members = match self.applier.commit_folded(folded, self.run.watch())? {
            Committed::Nothing(members) => {
                self.is_separate = true;
                return self.one_by_one(members, places);
            }
            Committed::Together(members) => members,
        };
        let complete = members.iter().filter(|member| member.is_complete());
        let segments: Vec<&SegmentFile> = complete.map(|member| &member.segment).collect();
        self.run.applied(&segments);
        let mut complete = Vec::with_capacity(members.len());
        let mut rest = Vec::new();
        for (member, place) in members.into_iter().zip(places) {
            if !member.is_complete() {
                rest.push((member.to, member, place));
                continue;
            }
            complete.push(Complete {
                row: self.completed(&member.segment)?,
                segment: member.segment,
                place,
                now: true,
            });
        }
        self.archive(&complete)?;
        rest.into_iter()
            .try_for_each(|(from, member, place)| self.member_alone(member, place, from))
    }

    fn one_by_one(&mut self, members: Vec<Member>, places: Vec<Place>) -> Result<(), ProcessError> {
        let mut members = members.into_iter().zip(places);
        members.try_for_each(|(member, place)| {
            let from = member.from;
            self.member_alone(member, place, from)
        })
    }

    fn member_alone(
        &mut self,
        member: Member,
        place: Place,
        from: u64,
    ) -> Result<(), ProcessError> {
        let (id, path) = (member.segment.id.clone(), member.segment.path.clone());
        self.alone(member.segment, place, from, member.size)
            .or_else(|error| self.failed(&id, &path, error))
    }

    /// Applies and archives one file.
    fn alone(
        &mut self,
        segment: SegmentFile,
        place: Place,
        from: u64,
        size: u64,
    ) -> Result<(), ProcessError> {
        let watch = self.run.watch();
        self.applier.apply_sealed(&segment, from, size, watch)?;
        self.run.applied(&[&segment]);
        let row = self.completed(&segment)?;
        self.archive(&[Complete {
            row,
            segment,
            place,
            now: true,
        }])
    }
}
