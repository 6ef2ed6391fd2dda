//! Threads that execute commands, so that not all are done by the main thread.

use crate::command::{Arguments, Failure, Outcome, text};
use std::{
    collections::HashMap,
    sync::{
        Mutex,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
};

struct Worker {
    commands: Sender<String>,
    answers: Receiver<String>,
    /// An answer that was seen and not yet given out.
    early: Option<String>,
}

static WORKERS: Mutex<Option<HashMap<u32, Worker>>> = Mutex::new(None);

/// Acts on a worker, which is taken out of the table meanwhile: a command may fork, and the child must not find
/// the table locked.
fn with<T>(number: u32, act: impl FnOnce(&mut Worker) -> T) -> T {
    let mut worker = table(|workers| workers.remove(&number)).unwrap_or_else(Worker::new);
    let result = act(&mut worker);
    table(|workers| workers.insert(number, worker));
    result
}

fn table<T>(act: impl FnOnce(&mut HashMap<u32, Worker>) -> T) -> T {
    act(WORKERS.lock().expect("no worker panics").get_or_insert_default())
}

impl Worker {
    fn new() -> Self {
        let (commands, inbox) = channel::<String>();
        let (outbox, answers) = channel();
        std::thread::spawn(move || {
            for command in inbox {
                if outbox.send(text(crate::execute(&command))).is_err() {
                    break;
                }
            }
        });
        Self { commands, answers, early: None }
    }

    fn send(&self, command: &str) {
        self.commands.send(command.to_owned()).expect("a worker runs");
    }

    fn receive(&mut self) -> Outcome {
        let line = self.early.take().unwrap_or_else(|| self.answers.recv().expect("a worker answers"));
        // The line is an answer already: it is handed on word by word.
        let mut words = Arguments::new(line.trim_end());
        match words.word()? {
            "ok" => Ok(words.rest().to_owned()),
            "errno" => Err(Failure::Errno(words.number()?)),
            "fault" => Err(Failure::Fault(crate::trap::Fault {
                signal: words.number()?,
                code: words.number()?,
                address: words.number::<i64>()?.cast_unsigned() as usize,
            })),
            _ => Err(Failure::Usage(words.rest().to_owned())),
        }
    }
}

/// `worker N COMMAND`: has worker N do it and waits.
pub(crate) fn call(arguments: &mut Arguments<'_>) -> Outcome {
    let (number, command) = (arguments.number()?, arguments.rest());
    with(number, |worker| {
        worker.send(command);
        worker.receive()
    })
}

/// `send N COMMAND`: has worker N do it and does not wait.
pub(crate) fn send(arguments: &mut Arguments<'_>) -> Outcome {
    let (number, command) = (arguments.number()?, arguments.rest());
    with(number, |worker| worker.send(command));
    Ok(String::new())
}

/// `receive N`: the answer to a `send`.
pub(crate) fn receive(arguments: &mut Arguments<'_>) -> Outcome {
    with(arguments.number()?, Worker::receive)
}

/// `finished N`: whether the answer to a `send` is there.
pub(crate) fn finished(arguments: &mut Arguments<'_>) -> Outcome {
    let there = with(arguments.number()?, |worker| {
        if worker.early.is_none() {
            match worker.answers.try_recv() {
                Ok(line) => worker.early = Some(line),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => panic!("a worker answers"),
            }
        }
        worker.early.is_some()
    });
    Ok(u8::from(there).to_string())
}
