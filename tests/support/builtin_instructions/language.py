"""Tasks with sentences: rewriting, correcting, judging, summarizing, translating, reading."""

FORMAL = """
Hey, can you send me the report asap? | Could you please send me the report at your earliest convenience?
Sorry, I can't make it to the meeting tomorrow. | I regret to inform you that I am unable to attend
  tomorrow's meeting.
Thanks a lot for helping us out last week. | We sincerely appreciate the assistance you provided last week.
We messed up your order and we're fixing it. | We made an error with your order and are currently working to
  correct it.
Let me know if you've got any questions. | Please do not hesitate to contact me should you have any
  questions.
This plan is way too expensive for us. | Unfortunately, the proposed plan exceeds our available budget.
Can we talk about this some other time? | Would it be possible to discuss this matter at a later time?
Your app keeps crashing and it's driving me nuts. | I am experiencing repeated crashes of your application,
  which is causing considerable inconvenience.
You forgot to sign the form. | We noticed that your signature is missing from the form.
Just checking if you got my last email. | I am writing to confirm whether you have received my previous
  email.
The boss wants this done by Friday. | Management has requested that this work be completed by Friday.
Don't be late for the interview. | Please ensure that you arrive punctually for the interview.
I think you're wrong about the numbers. | I believe there may be an inaccuracy in the figures you presented.
We need more people on this project. | This project requires additional staff.
Gimme a call when you're free. | Please telephone me at a time that is convenient for you.
The food was bad and the waiter was rude. | The quality of the meal was disappointing, and the service was
  discourteous.
I want my money back. | I would like to request a full refund.
That's not my job, ask someone in sales. | This matter falls outside my responsibilities; a member of the
  sales department will be able to assist you.
We're gonna start late because of the rain. | Owing to the rain, the event will begin later than scheduled.
Looks like the printer is broken again. | It appears that the printer is out of order once more.
No way we can finish that in two days. | It will not be possible to complete this task within two days.
Tell everyone the office is closed on Monday. | Kindly inform all staff that the office will be closed on
  Monday.
I'm really into your company and want to work there. | I have a strong interest in your company and would be
  glad to join it.
Your dog barks all night and I can't sleep. | I would like to bring to your attention that your dog's
  barking at night disturbs my sleep.
"""
FORMAL_ASKED = (
    "Rewrite the sentence in a formal tone.",
    "Make this message suitable for a business letter.",
    "Rephrase the following text so that it sounds polite and professional.",
)

PAST = """
She writes a letter to her aunt and takes it to the post office. | She wrote a letter to her aunt and took
  it to the post office.
The children run through the garden and catch butterflies. | The children ran through the garden and caught
  butterflies.
I drink a cup of tea and read the news. | I drank a cup of tea and read the news.
He goes to the market, buys bread and comes home late. | He went to the market, bought bread and came home
  late.
We sing in the choir and feel happy. | We sang in the choir and felt happy.
The teacher speaks slowly because the students do not understand. | The teacher spoke slowly because the
  students did not understand.
My brother breaks a glass and hides the pieces. | My brother broke a glass and hid the pieces.
They swim in the lake while we build a fire. | They swam in the lake while we built a fire.
The train leaves at noon and arrives before dark. | The train left at noon and arrived before dark.
You forget your keys and have to wait outside. | You forgot your keys and had to wait outside.
The cat sleeps on the sofa until the doorbell rings. | The cat slept on the sofa until the doorbell rang.
She thinks about the offer and chooses to stay. | She thought about the offer and chose to stay.
He teaches physics and grows tomatoes on his balcony. | He taught physics and grew tomatoes on his balcony.
The wind blows hard and the old fence falls. | The wind blew hard and the old fence fell.
I know the answer but I keep it to myself. | I knew the answer but I kept it to myself.
The artist draws a bird and gives the picture to a friend. | The artist drew a bird and gave the picture to
  a friend.
We see a deer and stand very still. | We saw a deer and stood very still.
The company sells bicycles and pays its workers well. | The company sold bicycles and paid its workers well.
"""
PAST_ASKED = (
    "Change the sentence to the past tense.",
    "Rewrite the following sentence so that it describes something that happened yesterday.",
    "Put the verbs of this sentence into the simple past.",
)

PASSIVE = """
The chef prepared the soup. | The soup was prepared by the chef.
A storm damaged the roof of the school. | The roof of the school was damaged by a storm.
The committee will announce the winner tomorrow. | The winner will be announced by the committee tomorrow.
Our team is testing the new software this week. | The new software is being tested by our team this week.
Thousands of visitors see the painting every year. | The painting is seen by thousands of visitors every
  year.
The dog has eaten my sandwich. | My sandwich has been eaten by the dog.
A famous architect designed the bridge. | The bridge was designed by a famous architect.
The mayor opens the festival each spring. | The festival is opened by the mayor each spring.
The police had closed the road before noon. | The road had been closed by the police before noon.
Volunteers planted two hundred trees along the river. | Two hundred trees were planted along the river by
  volunteers.
The nurse gave the patient a blanket. | The patient was given a blanket by the nurse.
Somebody must clean the kitchen before the guests arrive. | The kitchen must be cleaned before the guests
  arrive.
"""
PASSIVE_ASKED = (
    "Rewrite the sentence in the passive voice.",
    "Turn this active sentence into a passive one.",
)

GRAMMAR = """
She don't like coffee in the evening. | She doesn't like coffee in the evening. / The subject "she" takes
  "doesn't".
Me and my friend was late for the movie. | My friend and I were late for the movie. / The subject form is
  "I", and two people need "were".
I have saw that film two times. | I have seen that film twice. / The participle of "see" is "seen", and
  "twice" is the usual word.
There is many reasons to learn a language. | There are many reasons to learn a language. / The plural
  "reasons" needs "are".
Their going to visit there grandparents. | They're going to visit their grandparents. / "They're" means
  "they are", and "their" shows possession.
He is more taller than his father. | He is taller than his father. / "Taller" is already a comparative, so
  "more" is not needed.
Its raining, so take you're umbrella. | It's raining, so take your umbrella. / "It's" means "it is", and
  "your" shows possession.
I look forward to meet you next week. | I look forward to meeting you next week. / After "look forward to"
  the verb ends in "-ing".
The informations in this book are useful. | The information in this book is useful. / "Information" has no
  plural in English.
We was hoping that you could joined us. | We were hoping that you could join us. / "We" needs "were", and
  the base form follows "could".
She has been working here since five years. | She has been working here for five years. / Use "for" with a
  length of time and "since" with a starting point.
If I would have time, I would help you. | If I had time, I would help you. / In the if-clause of an unreal
  condition the simple past is used.
He plays the guitar very good. | He plays the guitar very well. / An adverb is needed to describe the verb
  "plays".
Each of the students have a laptop. | Each of the students has a laptop. / "Each" is singular.
Yesterday I go to the dentist and he pull a tooth. | Yesterday I went to the dentist, and he pulled a tooth.
  / "Yesterday" calls for the past tense.
I could of finished earlier. | I could have finished earlier. / "Could of" is a mishearing of "could've",
  that is, "could have".
Neither of the answers are correct. | Neither of the answers is correct. / "Neither" is singular in careful
  English.
Less people came to the concert this year. | Fewer people came to the concert this year. / Use "fewer" for
  things that can be counted.
The childrens toys is on the floor. | The children's toys are on the floor. / The possessive is
  "children's", and the plural "toys" needs "are".
Who's jacket is lying on the chair? | Whose jacket is lying on the chair? / "Who's" means "who is"; the
  possessive is "whose".
She suggested me to take the early train. | She suggested that I take the early train. / "Suggest" is
  followed by a that-clause or by a verb in "-ing".
I am living in this town since 2015. | I have been living in this town since 2015. / An action that began in
  the past and still goes on needs the present perfect.
The news are good today. | The news is good today. / "News" looks plural but takes a singular verb.
He said me that he was tired. | He told me that he was tired. / "Tell" takes a person as its object, but
  "say" does not.
Can you borrow me your pen? | Can you lend me your pen? / The owner lends something, and the other person
  borrows it.
"""
GRAMMAR_ASKED = (
    "Correct the grammar of the following sentence.",
    "Find and fix the mistakes in this sentence.",
    "Rewrite the sentence in correct English.",
)

SENTIMENT = """
The battery lasts two full days and the screen is gorgeous. Best phone I have owned. | Positive. The
  reviewer praises the battery and the screen and calls it the best phone so far.
I waited forty minutes for cold fries and nobody apologized. | Negative. The writer complains about a long
  wait, cold food and careless staff.
The hotel was clean, but the walls were so thin that I hardly slept. | Mixed. The hotel was clean, yet the
  noise spoiled the stay.
The package arrived on Tuesday in a brown box. | Neutral. The sentence states facts without any opinion.
What a wonderful evening! The actors were brilliant and we laughed until we cried. | Positive. Words such as
  "wonderful" and "brilliant" show clear enthusiasm.
The zipper broke after a single week. A complete waste of money. | Negative. The product failed early and
  the buyer regrets the purchase.
Nice design, shame about the price. | Mixed. The design is liked, but the price is criticized.
The course starts in May and has twelve lessons. | Neutral. It only gives the date and the length of the
  course.
Our guide knew every corner of the old town and made history come alive. | Positive. The guide is praised
  for knowledge and for lively stories.
The update deleted all my photos and support never answered. | Negative. The writer lost data and received
  no help.
The plot is predictable, although the music is lovely. | Mixed. The music is praised while the plot is found
  weak.
I can't recommend this bakery enough; the bread is heavenly. | Positive. "Can't recommend enough" is strong
  praise, and the bread is called heavenly.
The seats were sticky, the sound was awful and the film started late. | Negative. The visitor lists only
  complaints.
My daughter has not put this book down since her birthday. | Positive. It suggests that the child enjoys the
  book very much.
The store opens at nine and closes at six. | Neutral. The text only reports opening hours.
I expected more from such a famous restaurant. | Negative. The writer is disappointed because the place did
  not meet expectations.
The staff were friendly, but our room had no hot water for two days. | Mixed. The friendly staff are a plus,
  and the missing hot water is a serious minus.
Five stars! The repair took ten minutes and cost almost nothing. | Positive. The customer is delighted with
  a fast and cheap repair.
The instructions are confusing and two screws were missing. | Negative. The buyer is annoyed by unclear
  instructions and missing parts.
The jacket is blue and made of cotton. | Neutral. It describes color and material without judging them.
Traffic was terrible, yet the concert was worth every minute in the car. | Positive. Despite the bad traffic
  the writer is very happy with the concert.
The headphones sound great, but they hurt my ears after an hour. | Mixed. The sound is good, while the
  comfort is poor.
Never again. The tour bus broke down twice and we missed the castle. | Negative. "Never again" and the
  described problems show strong dissatisfaction.
I was skeptical at first, but this vacuum cleaner has won me over. | Positive. The doubts at the beginning
  turned into satisfaction.
"""
SENTIMENT_ASKED = (
    "Classify the sentiment of this review as positive, negative, mixed or neutral, and say why.",
    "Is the following text positive, negative, mixed or neutral? Explain briefly.",
    "Decide which feeling this comment expresses: positive, negative, mixed or neutral.",
)

SUMMARY = """
The town library will close for repairs in June. Readers can return their books at the town hall until it
  opens again in September. | The library is closed for repairs from June to September, and books can be
  returned at the town hall.
Researchers followed two thousand adults for ten years. Those who walked every day had fewer heart problems
  than those who did not. | A ten-year study links daily walking with fewer heart problems.
Our bakery has raised the price of bread by ten percent. The owner says that flour and electricity have
  become more expensive. | Higher costs for flour and power made the bakery raise bread prices by ten
  percent.
Lena missed the bus because her alarm did not ring. She ran all the way and reached the exam with one minute
  to spare. | Although Lena overslept and missed the bus, she reached her exam just in time.
The new bridge is open to pedestrians and cyclists only. Cars must still use the old bridge two kilometers
  upstream. | Only walkers and cyclists may use the new bridge; cars have to take the old one.
Heavy snow blocked the mountain pass on Friday night. Forty travelers spent the night in a school gym until
  the road was cleared. | Snow closed the pass, and forty travelers had to sleep in a school gym.
The museum bought a painting that had been lost for eighty years. It was discovered in the attic of a
  farmhouse by a student. | A painting lost for eighty years was found in an attic and now belongs to the
  museum.
Bees in the region are dying in large numbers. Experts blame a mix of pesticides, parasites and a lack of
  wild flowers. | Pesticides, parasites and missing flowers are causing many bees in the region to die.
The company will let its staff work from home on two days a week. A trial last year showed that people were
  happier and just as productive. | After a successful trial, staff may work from home two days a week.
Omar wanted to become a pilot, but his eyesight was too weak. He now designs the instruments that pilots use
  in the cockpit. | Weak eyesight kept Omar from flying, so he designs cockpit instruments instead.
The city planted five hundred trees along its main streets. Officials hope that the shade will make hot
  summers easier to bear. | The city planted five hundred street trees to provide shade in summer.
Tickets for the concert sold out within an hour. The band has therefore added a second show on the following
  evening. | Because tickets sold out so fast, the band will play a second concert.
The ferry to the island runs only when the sea is calm. During winter storms the islanders may wait a week
  for fresh food. | Winter storms can stop the ferry and leave the island without fresh food for a week.
Anna's grandmother never learned to use a computer. Last month she bought a tablet, and now she calls her
  family every evening. | Anna's grandmother has started using a tablet and now calls the family every
  evening.
Scientists have found a frog that is smaller than a fingernail. It lives among wet leaves on the forest
  floor and eats tiny mites. | A newly found frog, smaller than a fingernail, lives among wet leaves and
  eats mites.
The school cafeteria now cooks with vegetables from its own garden. Students help to plant and harvest them
  every week. | Students help grow the vegetables that their school cafeteria cooks.
A water pipe burst under Main Street early this morning. The street will stay closed until workers have
  replaced the pipe tonight. | Main Street is closed until tonight because of a burst water pipe.
The old clock in the tower stopped during the war. A retired engineer has repaired it, and it strikes the
  hours again. | A retired engineer has repaired the tower clock, which had been silent since the war.
Our flight was delayed by five hours because of fog. The airline gave every passenger a meal and a small
  refund. | Fog delayed the flight by five hours, and the airline compensated passengers with a meal and a
  refund.
Many people throw away bread that is a day old. A local cook turns such bread into soup, pudding and crunchy
  salad. | A local cook saves day-old bread by turning it into soup, pudding and salad.
"""
SUMMARY_ASKED = (
    "Summarize the paragraph in one sentence.",
    "Give a one-sentence summary of this text.",
    "State the main point of the following passage briefly.",
)

HEADLINES = """
A bakery in the harbor district gives its unsold bread to a shelter every night. | Harbor Bakery Donates
  Unsold Bread to Shelter
Astronomers have observed a comet that last passed the Earth six thousand years ago. | Comet Returns After
  Six Thousand Years
The city council voted to ban cars from the old town on Sundays. | Old Town Goes Car-Free on Sundays
A fourteen-year-old girl won the national chess championship. | Teenager, 14, Takes National Chess Crown
Because of the dry summer, farmers expect the smallest potato harvest in ten years. | Drought Threatens
  Smallest Potato Harvest in a Decade
The zoo has welcomed twin red pandas, the first born there in twenty years. | Zoo Celebrates Its First Red
  Panda Twins in Twenty Years
A study shows that short breaks help office workers make fewer mistakes. | Short Breaks Mean Fewer Office
  Errors, Study Finds
Volunteers removed three tons of trash from the river bank on Saturday. | Volunteers Clear Three Tons of
  Trash From River Bank
The last video rental store in the county will close at the end of the month. | County's Last Video Store to
  Close
Engineers built a bridge from recycled plastic that can carry heavy trucks. | Recycled Plastic Bridge Strong
  Enough for Trucks
"""
HEADLINES_ASKED = ("Write a newspaper headline for this story.", "Suggest a short headline for the text.")

SYNONYMS = """
brave | A synonym of "brave" is "courageous", and an antonym is "cowardly". Example: The brave firefighter
  entered the house.
ancient | A synonym of "ancient" is "very old", and an antonym is "modern". Example: They studied an ancient
  map.
generous | A synonym of "generous" is "giving", and an antonym is "stingy". Example: A generous neighbor
  lent us her car.
rapid | A synonym of "rapid" is "swift", and an antonym is "slow". Example: The town saw rapid growth.
fragile | A synonym of "fragile" is "delicate", and an antonym is "sturdy". Example: Pack the fragile vase
  with care.
begin | A synonym of "begin" is "start", and an antonym is "finish". Example: We begin the lesson at eight.
expand | A synonym of "expand" is "grow", and an antonym is "shrink". Example: Metals expand when they are
  heated.
scarce | A synonym of "scarce" is "rare", and an antonym is "plentiful". Example: Water is scarce in the
  desert.
polite | A synonym of "polite" is "courteous", and an antonym is "rude". Example: He gave a polite answer.
gloomy | A synonym of "gloomy" is "dreary", and an antonym is "cheerful". Example: It was a gloomy November
  day.
permit | A synonym of "permit" is "allow", and an antonym is "forbid". Example: The rules permit one small
  bag.
victory | A synonym of "victory" is "triumph", and an antonym is "defeat". Example: The team celebrated its
  victory.
humble | A synonym of "humble" is "modest", and an antonym is "arrogant". Example: The champion remained
  humble.
conceal | A synonym of "conceal" is "hide", and an antonym is "reveal". Example: Curtains conceal the stage.
vacant | A synonym of "vacant" is "empty", and an antonym is "occupied". Example: The house next door is
  vacant.
accurate | A synonym of "accurate" is "exact", and an antonym is "wrong". Example: We need accurate
  measurements.
gather | A synonym of "gather" is "collect", and an antonym is "scatter". Example: They gather wood for the
  fire.
optional | A synonym of "optional" is "voluntary", and an antonym is "required". Example: The second course
  is optional.
"""
SYNONYMS_ASKED = (
    "Give a synonym and an antonym of the word '{}' and use the word in a sentence.",
    "Name one word with the same meaning as '{}' and one with the opposite meaning. Add an example.",
)

IDIOMS = """
break the ice | To "break the ice" means to say or do something that makes people who have just met feel
  more relaxed. For example: A funny story broke the ice at the meeting.
once in a blue moon | If something happens "once in a blue moon", it happens very rarely. For example: He
  eats meat once in a blue moon.
hit the nail on the head | To "hit the nail on the head" means to describe exactly what is causing a
  situation or problem. For example: Your remark about the price hit the nail on the head.
bite off more than you can chew | To "bite off more than you can chew" means to take on a task that is too
  big for you. For example: With three jobs she bit off more than she could chew.
let the cat out of the bag | To "let the cat out of the bag" means to reveal a secret, usually by accident.
  For example: Tim let the cat out of the bag about the party.
a piece of cake | We call something "a piece of cake" when it is very easy to do. For example: For her the
  exam was a piece of cake.
under the weather | Someone who feels "under the weather" is slightly ill. For example: I feel under the
  weather, so I will stay in bed.
cost an arm and a leg | If something "costs an arm and a leg", it is extremely expensive. For example: The
  new roof cost us an arm and a leg.
the ball is in your court | "The ball is in your court" means that it is now your turn to act or decide. For
  example: We have made our offer; now the ball is in your court.
burn the midnight oil | To "burn the midnight oil" means to work or study until late at night. For example:
  Before exams the students burn the midnight oil.
kill two birds with one stone | To "kill two birds with one stone" means to reach two goals with a single
  action. For example: By cycling to work I kill two birds with one stone: I save money and keep fit.
spill the beans | To "spill the beans" means to tell people something that was meant to stay secret. For
  example: Who spilled the beans about the surprise?
sit on the fence | To "sit on the fence" means to avoid choosing a side in an argument. For example: You
  cannot sit on the fence forever; vote for one of them.
add fuel to the fire | To "add fuel to the fire" means to make a bad situation even worse. For example: His
  rude reply only added fuel to the fire.
the tip of the iceberg | "The tip of the iceberg" is the small visible part of a much larger problem. For
  example: These three complaints are just the tip of the iceberg.
get cold feet | To "get cold feet" means to become nervous and lose courage just before doing something
  important. For example: He got cold feet an hour before his speech.
"""
IDIOMS_ASKED = (
    "Explain the idiom '{}'.",
    "What does the expression '{}' mean?",
    "A learner of English does not understand the phrase '{}'. Explain it in one sentence.",
)

TRANSLATIONS = """
French | Good morning, how are you? | Bonjour, comment allez-vous ?
French | The book is on the table. | Le livre est sur la table.
French | I would like a cup of coffee, please. | Je voudrais une tasse de café, s'il vous plaît.
French | Where is the train station? | Où est la gare ?
French | My sister lives in Paris. | Ma sœur habite à Paris.
French | It is cold today. | Il fait froid aujourd'hui.
Spanish | Thank you very much for your help. | Muchas gracias por su ayuda.
Spanish | The house is big and white. | La casa es grande y blanca.
Spanish | What time is it? | ¿Qué hora es?
Spanish | I have two brothers and one sister. | Tengo dos hermanos y una hermana.
Spanish | We are going to the beach tomorrow. | Vamos a la playa mañana.
Spanish | The children are playing in the park. | Los niños están jugando en el parque.
German | I am learning German. | Ich lerne Deutsch.
German | The weather is beautiful today. | Das Wetter ist heute schön.
German | Where can I buy a ticket? | Wo kann ich eine Fahrkarte kaufen?
German | My father works in a hospital. | Mein Vater arbeitet in einem Krankenhaus.
German | Please speak more slowly. | Bitte sprechen Sie langsamer.
Italian | Good evening, a table for two, please. | Buonasera, un tavolo per due, per favore.
Italian | The sea is blue. | Il mare è blu.
Italian | I like this song very much. | Questa canzone mi piace molto.
"""

ODD_ONE_OUT = """
apple, banana, carrot, cherry | Carrot. It is a vegetable, while the others are fruits.
piano, violin, guitar, cello | Piano. It is played with keys, while the others are string instruments held
  by the player.
eagle, penguin, swallow, owl | Penguin. It cannot fly, while the other birds can.
Mars, Venus, Moon, Saturn | Moon. It circles the Earth, while the others are planets.
red, blue, square, green | Square. It is a shape, while the others are colors.
oak, rose, pine, maple | Rose. It is a flowering shrub, while the others are trees.
whale, shark, dolphin, seal | Shark. It is a fish, while the others are mammals.
hammer, screwdriver, wrench, spoon | Spoon. It is for eating, while the others are tools.
Paris, London, Sydney, Rome | Sydney. It is not a capital city, while the others are.
nine, twelve, eighteen, twenty | Twenty. It is not divisible by three, while the others are.
bread, butter, cheese, yogurt | Bread. It is made from grain, while the others are made from milk.
bicycle, car, truck, motorcycle | Bicycle. It has no engine, while the others do.
spider, ant, beetle, bee | Spider. It has eight legs and is an arachnid, while the others are insects.
January, Monday, March, May | Monday. It is a day of the week, while the others are months.
"""
ODD_ONE_OUT_ASKED = (
    "Which item does not belong with the others? Give a reason.",
    "Find the odd one out and explain your choice.",
)

CLAIMS = """
The Sun is a planet. | False. The Sun is a star, a huge ball of hot gas that shines by its own light.
Spiders are insects. | False. Spiders have eight legs and belong to the arachnids, whereas insects have six
  legs.
Water is made of hydrogen and oxygen. | True. Each molecule of water contains two hydrogen atoms and one
  oxygen atom.
A square is also a rectangle. | True. A rectangle needs four right angles, and every square has them.
Penguins live at the North Pole. | False. Wild penguins live almost only in the southern half of the world.
Bamboo is a kind of grass. | True. Bamboo belongs to the grass family, although it can grow as tall as a
  tree.
Sound can travel through empty space. | False. Sound needs a material such as air or water, and empty space
  has none.
The number 51 is prime. | False. It can be divided by 3 and by 17, since 3 × 17 = 51.
Dolphins breathe air. | True. Dolphins are mammals, so they come to the surface to breathe.
All deserts are hot. | False. A desert is defined by low rainfall, and Antarctica is a cold desert.
A tomato is, botanically speaking, a fruit. | True. It grows from the flower of the plant and contains its
  seeds.
Mount Everest is in South America. | False. Mount Everest is in Asia, on the border between Nepal and China.
Humans use only ten percent of their brains. | False. Scans show activity in nearly the whole brain over the
  course of a day.
Light travels faster than sound. | True. Light is almost a million times faster than sound in air.
Glass is made mainly from sand. | True. Sand rich in silica is melted with soda and lime to make common
  glass.
The Great Wall of China was built in a single year. | False. It was built and rebuilt in many stages over
  about two thousand years.
"""
CLAIMS_ASKED = (
    "Is this statement true or false? Explain in one sentence.",
    "Check the following claim.",
    "True or false: {}",
)

READING = """
Passage: Mia keeps three hens. Each hen lays one egg a day, and Mia sells the eggs on Saturdays. Question:
  When does Mia sell the eggs? | Mia sells the eggs on Saturdays.
Passage: The 7:40 train was full, so Daniel took the next one and arrived at nine. Question: Why did Daniel
  take a later train? | Daniel took a later train because the 7:40 train was full.
Passage: The café on Hill Street serves soup until three, and cake all day. Question: What can you still
  order at four o'clock? | At four o'clock you can still order cake.
Passage: Ravi painted the door green, although his wife had asked for blue. Question: Which color did Ravi's
  wife want? | Ravi's wife wanted the door to be blue.
Passage: The museum is closed on Mondays. On other days it opens at ten, except on Sundays, when it opens at
  noon. Question: When does it open on Sunday? | On Sundays the museum opens at noon.
Passage: Three ships left the harbor. Two were bound for Norway and one for Scotland. Question: How many
  ships sailed to Norway? | Two ships sailed to Norway.
Passage: Sofia moved from Madrid to Vienna in 2019 in order to study music. Question: Why did Sofia move? |
  Sofia moved to Vienna because she wanted to study music there.
Passage: The recipe asks for butter, but Ken is out of it and uses olive oil instead. Question: What does
  Ken use in place of butter? | Ken uses olive oil in place of butter.
Passage: A lamp costs 40 dollars. With the student card it is a quarter cheaper. Question: What does a
  student pay? | A student pays 30 dollars, because a quarter of 40 dollars is 10 dollars.
Passage: Grace borrowed Tom's bicycle since hers had a flat tire. Question: Whose bicycle had a flat tire? |
  Grace's bicycle had a flat tire, so she borrowed Tom's.
Passage: The hikers reached the hut at dusk, cooked noodles and went to bed early, because the climb would
  start before sunrise. Question: What did the hikers eat? | The hikers ate noodles at the hut.
Passage: The factory made 500 chairs in May and 650 in June. Question: In which month were more chairs made,
  and how many more? | More chairs were made in June: 650 - 500 = 150 more than in May.
Passage: Nadia speaks Arabic and French. Her colleague Jon speaks English and French. Question: Which
  language can they use together? | They can both speak French, so they can use French together.
Passage: After the storm the power was out for two days, and the neighbors shared a gas stove. Question:
  What did the neighbors share? | The neighbors shared a gas stove.
"""
READING_ASKED = (
    "Answer the question with the help of the passage.",
    "Read the passage and answer in a complete sentence.",
)

BLANKS = """
She was so ___ that she fell asleep on the bus. | tired / She was so tired that she fell asleep on the bus.
Please turn ___ the lights when you leave. | off / Please turn off the lights when you leave.
The opposite of "always" is "___". | never / The opposite of "always" is "never".
We have lived here ___ 2010. | since / We have lived here since 2010.
He is afraid ___ spiders. | of / He is afraid of spiders.
Water freezes at zero degrees ___. | Celsius / Water freezes at zero degrees Celsius.
A baby cat is called a ___. | kitten / A baby cat is called a kitten.
If it rains, we ___ stay at home. | will / If it rains, we will stay at home.
The sun rises in the ___. | east / The sun rises in the east.
I am looking forward ___ the holidays. | to / I am looking forward to the holidays.
There are sixty seconds in a ___. | minute / There are sixty seconds in a minute.
This cake is ___ than the one we had yesterday. | better / This cake is better than the one we had
  yesterday.
"""
BLANKS_ASKED = (
    "Fill in the blank and write out the sentence.",
    "Complete the sentence with one fitting word, then repeat the whole sentence.",
)
