//! What a guest's machine was like when a snapshot of it was taken.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::base::plan::Disk;
use crate::base::{ByteSize, GuestPlan};

/// What must be so again for a snapshot to fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    memory: ByteSize,
    cpus: u32,
    /// The machine type, once the guest has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    machine: Option<String>,
    /// The disks that are written to: the snapshot is on each.
    disks: BTreeMap<String, ByteSize>,
    /// The others.
    read_only: BTreeSet<String>,
}

impl Shape {
    /// Of a guest as it is now.
    #[must_use]
    pub fn of(plan: &GuestPlan) -> Self {
        let disks = |read_only: bool| plan.disks.iter().filter(move |disk| disk.read_only == read_only);
        Shape {
            memory: plan.memory,
            cpus: plan.cpus,
            machine: plan.platform.machine.clone(),
            disks: disks(false).map(|disk| (disk.title(), disk.size)).collect(),
            read_only: disks(true).map(Disk::title).collect(),
        }
    }

    /// The first thing that keeps a snapshot of this shape, with its memory or without, from fitting a guest as it is
    /// now: a part of a sentence that says how it was. The disks' sizes are none: they go back with it.
    #[must_use]
    pub fn unlike(&self, now: &GuestPlan, memory: bool) -> Option<String> {
        let now = Shape::of(now);
        let had = |name: &String| format!("it had the disk '{name}'");
        let had_not = |name: &String| format!("it did not have the disk '{name}'");
        let written = || {
            let gone = self.disks.keys().find(|name| !now.disks.contains_key(*name)).map(had);
            gone.or_else(|| now.disks.keys().find(|name| !self.disks.contains_key(*name)).map(had_not))
        };
        let read = || {
            let gone = self.read_only.difference(&now.read_only).next().map(had);
            gone.or_else(|| now.read_only.difference(&self.read_only).next().map(had_not))
        };
        let machine = || match (&self.machine, &now.machine) {
            (Some(then), Some(today)) if then != today => Some(format!("its machine type was '{then}'")),
            _ => None,
        };
        let size = || match (self.memory == now.memory, self.cpus == now.cpus) {
            (false, _) => Some(format!("it had {} of memory", self.memory)),
            (_, false) => Some(format!("its processors were {}", self.cpus)),
            _ => None,
        };
        // The memory goes on in the very machine that it was in.
        let board = || memory.then(|| read().or_else(size).or_else(machine)).flatten();
        written().or_else(board)
    }

    /// Gives a guest's disks the sizes that they had.
    pub fn size(&self, disks: &mut [Disk]) {
        for disk in disks.iter_mut().filter(|disk| !disk.read_only) {
            disk.size = self.disks.get(&disk.title()).copied().unwrap_or(disk.size);
        }
    }
}
