//! Volumes of a guest that is changed or copied.

use virt::stream::Stream;

use super::{Storage, doing, file_name, physical};
use crate::base::plan::Disk;
use crate::base::{Error, GuestPlan, Result, interrupt};

impl Storage<'_> {
    /// Makes all volumes of the guest `to`, with the content of those of `from`, which does not run.
    ///
    /// # Errors
    /// As [`lay_out`](Self::lay_out).
    pub(in crate::driver::libvirt) fn duplicate(&self, from: &GuestPlan, to: &GuestPlan) -> Result<()> {
        let pool = self.pool()?;
        let (theirs, ours) = (self.places(&pool, from)?, self.places(&pool, to)?);
        for disk in to.disks.iter().filter(|disk| !disk.kept) {
            let same = |other: &Disk| other.path.file_name() == disk.path.file_name() && !other.kept;
            let (Some(source), Some(target)) =
                (from.disks.iter().position(same), to.disks.iter().position(|other| other == disk))
            else {
                return Err(Error::failed(format!("'{}' has no disk like '{}'", from.name, disk.path.display())));
            };
            let name = file_name(&theirs.disks[source].top.path)?;
            let lost = || Error::not_found(format!("libvirt has lost the volume '{name}'"));
            let volume = self.volume(&pool, &name)?.ok_or_else(lost)?;
            // Over a new overlay of the same kind, and so a shorter file: libvirt knows then what it is.
            let made = self.overlay(&pool, disk, &ours.disks[target])?;
            let (what, length) = (|| format!("copying the volume '{name}'"), physical(&volume)?.ok_or_else(lost)?);
            let stream = Stream::new(self.connection, 0).map_err(doing(what()))?;
            volume.download(&stream, 0, length, 0).map_err(doing(what()))?;
            let copied = self.upload(&made, &mut Incoming(&stream), length, interrupt::check);
            let ended = stream.finish().map_err(doing(what()));
            copied.and(ended)?;
        }
        self.lay_out_seed(&pool, to)
    }

    /// Makes the guest's disks as large as the plan says, and those that are not there yet.
    ///
    /// # Errors
    /// What libvirt said.
    pub(in crate::driver::libvirt) fn extend(&self, plan: &GuestPlan) -> Result<()> {
        let pool = self.pool()?;
        let places = self.places(&pool, plan)?;
        for (disk, placed) in plan.disks.iter().zip(&places.disks).filter(|(disk, _)| !disk.kept) {
            let name = file_name(&placed.top.path)?;
            match self.volume(&pool, &name)? {
                None if disk.chain.is_empty() => drop(self.overlay(&pool, disk, placed)?),
                None => {
                    return Err(Error::not_found(format!("libvirt has lost the volume '{name}' of '{}'", plan.name)));
                }
                Some(volume) => {
                    let what = || format!("growing the volume '{name}'");
                    if volume.info().map_err(doing(what()))?.capacity < disk.size.0 {
                        volume.resize(disk.size.0, 0).map_err(doing(what()))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Deletes the disks of the guest that are in `old` and not in `new` any more.
    ///
    /// # Errors
    /// What libvirt said, after all were tried.
    pub(in crate::driver::libvirt) fn shed(&self, old: &GuestPlan, new: &GuestPlan) -> Result<()> {
        let (names, stay) = (self.disk_names(old)?, self.disk_names(new)?);
        let names: Vec<String> = names.into_iter().filter(|name| !stay.contains(name)).collect();
        match self.find()? {
            Some(pool) if !names.is_empty() => self.delete(&pool, &names),
            _ => Ok(()),
        }
    }
}

/// What a stream of libvirt's brings.
struct Incoming<'a>(&'a Stream);

impl std::io::Read for Incoming<'_> {
    fn read(&mut self, piece: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.recv(piece).map_err(|error| std::io::Error::other(error.message().to_owned()))?;
        usize::try_from(read).map_err(std::io::Error::other)
    }
}
