//! Texts that are read and continued. Plain language of several kinds, so that distributions are those of real use, and
//! enough of it: the share of rows with the same likeliest token has a standard error of half a point over 1,200 rows.

/// Continued as they are.
pub(super) const TEXTS: [&str; 10] = [
    "The lighthouse keeper wrote down the weather every evening: wind from the south-west, a heavy sea, two fishing boats \
     on their way home. On the twelfth of March the entry is longer than usual. A ship had run aground on the sandbank \
     east of the harbour, and the whole village went out with ropes and lanterns to bring the crew",
    "To make bread you need flour, water, salt and time. Mix 500 grams of flour with 350 grams of water, wait half an \
     hour, add 10 grams of salt and a little yeast, and fold the dough every thirty minutes. After four hours the dough \
     is twice as large as it was. Heat the oven as far as it goes, with an iron pot in it, and put the loaf",
    "fn main() {\n    let numbers = vec![3, 1, 4, 1, 5, 9, 2, 6];\n    let mut sorted = numbers.clone();\n    sorted.sort();\n    \
     for (index, number) in sorted.iter().enumerate() {\n        println!(",
    "import csv\nimport sys\n\n\ndef total_by_customer(path):\n    \"\"\"Adds up the amounts of each customer in a CSV file.\"\"\"\n    \
     totals = {}\n    with open(path, newline=\"\") as file:\n        for row in csv.DictReader(file):\n            \
     customer = row[\"customer\"]\n            totals[customer] = totals.get(customer, 0) + float(row[\"amount\"])\n    \
     return totals\n\n\nif __name__ == \"__main__\":\n    for customer, total in",
    "Plants take up water through their roots and lose most of it again through small openings in their leaves. These \
     openings, called stomata, also let carbon dioxide in, which the plant needs to make sugar from sunlight. On a hot \
     and dry day the plant has to choose: if it closes its stomata, it saves water but cannot grow; if it leaves them \
     open, it may wilt. Cacti have found another way. They open their stomata only at night, when the air is cool, and \
     store",
    "Dear Mrs. Hoffmann,\n\nThank you for your letter of 4 May about the invoice for your last order. You are right: we \
     charged you for three lamps, although only two were delivered. We are sorry for the mistake. We have sent the \
     missing lamp today, and it should reach you within three working days. If you would rather have your money back, \
     please let us know",
    "The city council decided on Tuesday to close the old bridge to cars from next spring. Engineers had found cracks in \
     two of its five arches. Cyclists and pedestrians will still be able to cross, but the bus lines 12 and 14 are going \
     to take the longer way round by the station. Shop owners on the north bank fear that they will lose customers. \
     \"Nobody has asked us,\" said",
    "\"You said you would be here at six,\" she said without turning round.\n\"The train was late.\"\n\"The train is always \
     late when you have something to tell me.\" She put the cup down and looked out at the rain. \"So what is it this \
     time?\"\nHe took off his coat, hung it over the chair, and sat down on the other side of the table.\n\"They have \
     offered me the job in Lisbon,\" he",
    "Question: A farmer has 17 sheep and buys 8 more. Then he sells 5 of them at the market. How many sheep does he have \
     now?\nAnswer: He had 17 sheep and bought 8, so he had 17 + 8 = 25. He sold 5, so he has 25 - 5 = 20 sheep.\n\n\
     Question: A train leaves at 9:40 and arrives at 11:15. How long does the journey take?\nAnswer: From 9:40 to 10:40 \
     is one hour, and from 10:40 to 11:15",
    "name,country,height_m,first_ascent\nMount Everest,Nepal and China,8849,1953\nK2,Pakistan and China,8611,1954\n\
     Kangchenjunga,Nepal and India,8586,1955\nMatterhorn,Switzerland and Italy,4478,1865\nMont Blanc,France and Italy,",
];

/// Asked, where the model has a chat template.
pub(super) const QUESTIONS: [&str; 4] = [
    "What should I look at when I buy a used bicycle? Name three things.",
    "Why is the sky blue during the day and red in the evening? Explain it to a child of ten.",
    "Write a short message to my neighbours: I am having a party on Saturday, and it may get loud until midnight.",
    "Sum up this text in one sentence: The museum's new wing holds two hundred paintings that nobody has seen for fifty \
     years, because there was no room for them. It opens on Sunday, and the first thousand visitors pay nothing.",
];
