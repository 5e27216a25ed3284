//! The way out of a call.

use super::{Effect, Message};
use crate::limits::{EFFECTS_MAX, EFFECTS_ROOM, MESSAGES_MAX};
use crate::note::Note;
use heapless::Deque;

/// The bounded way out of a call: effects for the shell, messages for other actors.
pub struct Effects {
    effects: Deque<Effect, EFFECTS_MAX>,
    messages: Deque<Message, MESSAGES_MAX>,
    dropped: u64,
}

impl Default for Effects {
    fn default() -> Self {
        Effects { effects: Deque::new(), messages: Deque::new(), dropped: 0 }
    }
}

impl Effects {
    /// An effect for the shell.
    pub fn emit(&mut self, effect: Effect) {
        if self.effects.push_back(effect).is_err() {
            self.dropped += 1;
            debug_assert!(false, "an actor emitted more than EFFECTS_MAX effects in one call");
        }
    }

    /// A message for another actor.
    pub fn tell(&mut self, message: Message) {
        if self.messages.push_back(message).is_err() {
            self.dropped += 1;
            debug_assert!(false, "actors exchanged more than MESSAGES_MAX messages in one call");
        }
    }

    /// A line for the log.
    pub fn note(&mut self, note: Note) {
        self.emit(Effect::Note(note));
    }

    /// The next effect to carry out.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    pub(crate) fn next_message(&mut self) -> Option<Message> {
        self.messages.pop_front()
    }

    pub(crate) fn has_messages(&self) -> bool {
        !self.messages.is_empty()
    }

    /// Whether there is room for all the effects that one more step may have.
    pub(crate) fn has_room(&self) -> bool {
        self.room() >= EFFECTS_ROOM
    }

    /// Effects that may still be emitted in this call.
    pub fn room(&self) -> usize {
        EFFECTS_MAX - self.effects.len()
    }

    /// Effects and messages lost at a bound; anything but 0 is a defect.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}
